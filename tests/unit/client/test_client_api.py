"""FedOps' calls of a client, each as one message through whoever speaks for this process."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from client_tape import Tape

from fedops_mqtt.client.client_api import (
    ClientManagerAPI,
    ClientMangerAPI,
    ClientServerAPI,
    NoActiveBackendError,
    current_backend,
    publishing_through,
)
from fedops_mqtt.client.client_utils import notify_fail, notify_fin
from fedops_mqtt.protocol import MetricsKind, Outcome


@pytest.fixture
def tape() -> Iterator[Tape]:
    tape = Tape()
    with publishing_through(tape):
        yield tape


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (ClientServerAPI.put_train_result, MetricsKind.TRAIN_RESULT),
        (ClientServerAPI.put_test_result, MetricsKind.TEST_RESULT),
        (ClientServerAPI.put_client_time_result, MetricsKind.TIME_RESULT),
        (ClientServerAPI.put_client_system, MetricsKind.SYSTEM),
        (ClientServerAPI.put_client_xai_result, MetricsKind.DATA),
    ],
)
@pytest.mark.parametrize("is_text", [True, False])
def test_each_report_is_one_message_with_its_fields_as_they_are(
    tape: Tape, call: Any, kind: MetricsKind, is_text: bool
) -> None:
    said = {"fl_task_id": "t", "round": 2, "train_loss": 0.5, "mine": {"depth": 1}}
    call(ClientServerAPI("t"), json.dumps(said) if is_text else said)
    assert tape.told == [(kind, 2, {"fl_task_id": "t", "round": 2, "train_loss": 0.5, "mine.depth": 1})]


@pytest.mark.parametrize(("given", "said"), [("4", 4), (None, None)])
def test_a_cluster_is_one_message(tape: Tape, given: Any, said: int | None) -> None:
    ClientServerAPI("t").put_cluster_assign("02:00:00:00:00:01", given)
    assert tape.told == [(MetricsKind.DATA, 0, {"client_mac": "02:00:00:00:00:01", "cluster_id": said})]


@pytest.mark.parametrize("round_", [-1, "2", 1.5, None])
def test_a_round_that_is_no_count_is_reported_as_none(tape: Tape, round_: object) -> None:
    ClientServerAPI("t").put_train_result({"round": round_})
    assert tape.told[0][1] == 0


@pytest.mark.parametrize("text", ["[1]", '"x"', "no json"])
def test_a_report_that_is_no_object_is_refused(tape: Tape, text: str) -> None:
    with pytest.raises(ValueError, match=r"one JSON object|Expecting value"):
        ClientServerAPI("t").put_test_result(text)
    assert tape.told == []


def test_a_client_asks_for_its_model_and_server(tape: Tape) -> None:
    info = ClientMangerAPI().get_info()
    assert (info.status_code, info.json()["GL_Model_V"]) == (200, 3)
    assert ClientServerAPI("t").get_port() == "10.0.0.1:8080"


@pytest.mark.parametrize("api", [ClientManagerAPI(), ClientServerAPI("t")])
async def test_a_training_ends_and_a_client_leaves_by_fedops_calls(
    tape: Tape, api: ClientManagerAPI | ClientServerAPI
) -> None:
    api.get_train_fin()
    api.get_train_fail("no data")
    assert (await notify_fin(), await notify_fail()) == (False, False)
    by_program = "reported by the client's program"
    assert tape.ends == [
        (Outcome.FINISHED, None),
        (Outcome.FAILED, "no data"),
        (Outcome.FINISHED, None),
        (Outcome.FAILED, by_program),
    ]
    assert not tape.has_left
    api.get_client_out()
    assert tape.has_left


def test_both_spellings_are_one() -> None:
    assert ClientMangerAPI is ClientManagerAPI


def test_the_backend_that_was_entered_last_is_used_and_none_is_reported() -> None:
    first, second = Tape(), Tape()
    with publishing_through(first):
        with publishing_through(second):
            assert current_backend() is second
        assert current_backend() is first
    with pytest.raises(NoActiveBackendError, match="through an FLClientTask"):
        ClientServerAPI("t").get_port()


def test_numbers_of_numpy_are_numbers_wherever_they_stand(tape: Tape) -> None:
    ClientServerAPI("t").put_train_result({"loss": np.float32(0.5), "by": {"n": np.int64(3)}, "all": np.ones(2)})
    assert tape.told[0][2] == {"loss": 0.5, "by.n": 3}


def test_a_round_beyond_a_count_is_reported_as_none(tape: Tape) -> None:
    ClientServerAPI("t").put_train_result({"round": 2**70})
    assert tape.told[0][1] == 0
