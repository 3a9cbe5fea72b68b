"""The line's endpoints under random requests and frames: every answer is a sane one, and the round goes on."""

import http.client
import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from flwr.app import Message
from http_fuzz import fuzz_raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from line_parts import Lines, ask, echo_app, mac_of
from test_fuzz_decoders import any_frame, headers_of, spoiled

from fedops_mqtt.line import wire
from fedops_mqtt.line.server import LineServer
from fedops_mqtt.protocol import Outcome

pytestmark = pytest.mark.long

TIMEOUT_S = 300.0
MAX_MESSAGE_BYTES = 1 << 20
SEED = 7

paths = st.sampled_from(
    [wire.HELLO_PATH, wire.JOIN_PATH, wire.PONG_PATH, wire.LEAVE_PATH, f"{wire.REPLY_PATH}x", wire.REPLY_PATH, "/", "*"]
)
headers = st.dictionaries(
    st.sampled_from([wire.SESSION_HEADER, wire.OFFSET_HEADER, wire.LENGTH_HEADER, wire.THEN_HEADER, "authorization"]),
    st.sampled_from(["0", "-1", "next", "Bearer x", "Bearer ", "9" * 17, "9" * 40])
    | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20),
    max_size=4,
)
bodies = st.one_of(
    st.binary(max_size=200),
    st.just(b'{"client_mac": "02:00:00:00:00:09", "instance": "i", "attempt": 1}').flatmap(spoiled),
    any_frame.flatmap(spoiled),
)
FUZZ = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def lines() -> Iterator[Lines]:
    with ExitStack() as stack:
        yield Lines(stack)


@pytest.fixture
def server(lines: Lines) -> LineServer:
    """A line for those who know its token, with one good client."""
    server = lines.serve(
        join_token="shared", limits={"max_message_bytes": MAX_MESSAGE_BYTES, "stall_s": 5.0, "ping_s": 30.0}
    )
    lines.join(server, echo_app(), token="shared")
    lines.changes.wait("joined")
    return server


def request(server: LineServer, method: str, path: str, body: bytes, head: dict[str, str]) -> tuple[int, bytes]:
    host, _, port = server.address.rpartition(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)) as connection:
        connection.request(method, path, body=body, headers={key: value.strip() for key, value in head.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()


def is_still_well(server: LineServer) -> None:
    (reply,) = ask(server)
    assert not reply.has_error()


def test_any_request_is_answered_and_the_good_client_trains_on(server: LineServer) -> None:
    @FUZZ
    @given(st.sampled_from(["GET", "POST", "PUT", "DELETE"]), paths, bodies, headers)
    def fuzz(method: str, path: str, body: bytes, head: dict[str, str]) -> None:
        status, said = request(server, method, path, body, head)
        assert status < 500, said
        assert b"Traceback" not in said
        assert status != 200 or path == wire.HELLO_PATH, "nobody here has the token"

    fuzz()
    fuzz_raw(f"http://{server.address}", seed=SEED, count=150)
    is_still_well(server)
    assert list(server.members) == [mac_of(1)]


def test_a_member_that_sends_any_frame_affects_no_other(lines: Lines, server: LineServer) -> None:
    """Someone with a token of his own: his session is real, his frames are not."""
    bad = mac_of(2)
    body = f'{{"client_mac": "{bad}", "instance": "i", "attempt": 1}}'.encode()
    status, said = request(server, "POST", wire.JOIN_PATH, body, {"authorization": "Bearer shared"})
    assert status == 200
    session = wire.decode_body(wire.JoinAnswer, said)
    mine = {"authorization": "Bearer shared", wire.SESSION_HEADER: session.session}

    @FUZZ
    @given(bodies, headers, st.integers(0, 2 * MAX_MESSAGE_BYTES), st.booleans())
    def fuzz(frame: bytes, head: dict[str, str], length: int, is_honest: bool) -> None:
        said_length = str(len(frame) if is_honest else length)
        named = {wire.OFFSET_HEADER: "0", wire.LENGTH_HEADER: said_length, **head, **mine}
        status, answer = request(server, "POST", f"{wire.REPLY_PATH}{message_id}", frame, named)
        assert status < 500, answer
        assert b"Traceback" not in answer

    rounds: queue.Queue[list[Message]] = queue.Queue()
    with closing(_control(server, mine)):
        lines.changes.wait("joined", bad)
        asking = threading.Thread(target=lambda: rounds.put(ask(server)))
        asking.start()
        message_id = _next_message_id(server, mine)
        fuzz()
        leave = wire.encode_body(wire.LeaveRequest(outcome=Outcome.FAILED, reason="enough"))
        assert request(server, "POST", wire.LEAVE_PATH, leave, mine)[0] == 200
        replies = rounds.get(timeout=TIMEOUT_S)
        asking.join(TIMEOUT_S)
    assert sorted(reply.has_error() for reply in replies) == [False, True]
    is_still_well(server)


def _control(server: LineServer, mine: dict[str, str]) -> Any:
    host, _, port = server.address.rpartition(":")
    control = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
    control.request("GET", wire.CONTROL_PATH, headers=mine)
    control.getresponse().readline()
    return control


def _next_message_id(server: LineServer, mine: dict[str, str]) -> str:
    """Return the id of the message that waits, from the head of its frame."""
    status, frame = request(server, "GET", wire.NEXT_PATH, b"", mine)
    assert status == 200
    return str(headers_of(frame)[0]["message_id"])
