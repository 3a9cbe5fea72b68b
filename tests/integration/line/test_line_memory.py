"""What the line holds of large models, on both ends: counted by tracemalloc, strategies and apps left out."""

import gc
import tracemalloc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from line_parts import WAIT_S, Lines, ask, echo_app, mac_of

from fedops_mqtt.protocol import RunOutcome

pytestmark = pytest.mark.long

MODEL_BYTES = 32_000_000
SLACK_BYTES = 8_000_000
"""Sockets' buffers and everything that does not grow with the model."""
NUM_CLIENTS = 3
ROUNDS = 5
"""Enough for what is left over of each to show."""


def model(num_arrays: int = 1) -> ArrayRecord:
    return ArrayRecord([np.zeros(MODEL_BYTES // num_arrays // 4, "f4") for _ in range(num_arrays)])


@pytest.fixture
def traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("num_arrays", [1, 8])
@pytest.mark.usefixtures("traced")
def test_a_server_holds_a_model_for_each_client_and_two_more_at_most(lines: Lines, num_arrays: int) -> None:
    server = lines.serve(min_clients=NUM_CLIENTS)
    clients = [lines.spawn(server, mac=mac_of(number)) for number in range(1, NUM_CLIENTS + 1)]
    assert len(server.grid.get_node_ids()) == len(clients)
    tracemalloc.reset_peak()
    before_bytes, _ = tracemalloc.get_traced_memory()
    replies = ask(server, RecordDict({"arrays": model(num_arrays)}))
    _, peak_bytes = tracemalloc.get_traced_memory()
    assert sum(reply.content["arrays"].count_bytes() for reply in replies) > NUM_CLIENTS * MODEL_BYTES
    assert peak_bytes - before_bytes < (NUM_CLIENTS + 2) * MODEL_BYTES + SLACK_BYTES
    del replies
    after_bytes, _ = tracemalloc.get_traced_memory()
    assert after_bytes - before_bytes < SLACK_BYTES, "nothing is kept of a round that was collected"


def test_a_client_holds_three_models_at_most(lines: Lines) -> None:
    server = lines.serve()
    client = lines.spawn(server, mode="memory")
    for _ in range(ROUNDS):
        (reply,) = ask(server, RecordDict({"arrays": model()}))
        assert reply.has_content()
    server.close(RunOutcome.COMPLETED, "done", linger_s=WAIT_S)
    peak_bytes = client.wait_for("peak_bytes")
    assert 2 * MODEL_BYTES < peak_bytes < 3 * MODEL_BYTES + SLACK_BYTES, "message and reply at least"


def test_the_model_is_encoded_once_and_shared_by_all(lines: Lines) -> None:
    server = lines.serve()
    arrays = model(2)
    messages = [Message(RecordDict({"arrays": arrays}), number, "train") for number in (2, 3, 4)]
    frames = [outbound_message.frame for outbound_message in server.grid._outbound(messages)]
    for buffers in zip(*(frame.buffers for frame in frames), strict=True):
        assert len({id(buffer) for buffer in buffers}) == 1
    assert {id(buffer) for buffer in frames[0].buffers} == {id(array.data) for array in arrays.values()}


def test_views_that_an_app_took_of_a_large_message_do_not_pile_up(lines: Lines) -> None:
    alive: list[weakref.ref[RecordDict]] = []

    def look(message: Message, context: Context) -> None:
        alive.append(weakref.ref(message.content))
        assert message.content.array_records

    server = lines.serve()
    lines.join(server, echo_app(look))
    for _ in range(6):
        (reply,) = ask(server, RecordDict({"arrays": model()}))
    assert reply.has_content()
    assert sum(ref() is not None for ref in alive) <= 4
