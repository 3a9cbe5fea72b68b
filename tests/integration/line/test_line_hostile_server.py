"""A client of the line at servers that are not ours: it ends within its limit, whatever they answer."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from http_stand_in import Handler, endless, serving
from line_parts import WAIT_S, Lines, ThreadClient, echo_app, mac_of

from fedops_mqtt.line.connection import Connector
from fedops_mqtt.line.errors import LineConfigError
from fedops_mqtt.line.runner import LineRunner
from fedops_mqtt.protocol import Outcome

JOIN_S = 2.0
ADMITTED = {
    "run_id": "r1",
    "launch": 0,
    "session": "s",
    "node_id": 5,
    "ping_s": 1000.0,
    "poll_s": 5.0,
    "round_s": 5.0,
    "max_message_bytes": 1000,
}
BAD_HOSTS = [f"{'a' * 64}.example:80", "a..b:80", "h:70000", f"{'a' * 300}:80"]


def admitting(changes: dict[str, Any]) -> Callable[[Handler], None]:
    """A server that lets a client in, and counts it never."""

    def answer(request: Handler) -> None:
        if request.command == "POST":
            request.give(200, json.dumps({**ADMITTED, **changes}).encode())
        else:
            request.send_response(200)
            request.end_headers()
            request.wfile.flush()
            request.rfile.read(1)

    return answer


def refusing(**body: str) -> Callable[[Handler], None]:
    return lambda request: request.give(410, json.dumps(body).encode())


@pytest.mark.parametrize(
    "answer",
    [
        refusing(code="gone", outcome="xyz"),
        refusing(code="ended", outcome="completed"),
        admitting({"ping_s": 1e300}),
        admitting({"ping_s": 1e10}),
        admitting({"poll_s": float("nan")}),
        admitting({"session": "a\r\nb"}),
        admitting({"launch": 2**70}),
        admitting({}),
        endless(500, bytes(1 << 20), 0),
        endless(200, bytes(1 << 20), 0),
        endless(200, b" ", 0.2),
        endless(503, b" ", 0.2),
    ],
    ids=[
        "no such outcome",
        "outcome of a run",
        "ping beyond time",
        "ping of three hundred years",
        "NaN",
        "no header",
        "huge launch",
        "silent",
        "endless error",
        "endless answer",
        "slow answer",
        "slow error",
    ],
)
def test_a_client_ends_within_its_limit_whatever_answers(lines: Lines, answer: Callable[[Handler], None]) -> None:
    class Hostile(Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            answer(self)

        def do_GET(self) -> None:
            answer(self)

    with serving(Hostile) as address:
        end = lines.join(address, echo_app(), join_s=JOIN_S).end()
    assert (end.outcome, f"no FL server at {address} within 2 s" in end.reason) == (Outcome.FAILED, True)


def test_an_unexpected_error_is_the_reason_of_the_end(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connector: Connector, **limits: float) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Connector, "connection", fail)
    end = ThreadClient("127.0.0.1:1", echo_app()).end()
    assert (end.outcome, end.reason.splitlines()[0]) == (Outcome.FAILED, "RuntimeError: can't start new thread")


@pytest.mark.parametrize("address", BAD_HOSTS)
def test_an_address_that_no_host_can_have_is_refused_with_its_name(address: str) -> None:
    with pytest.raises(LineConfigError, match=r"server_ip '.*' is not host:port"):
        LineRunner(server_ip=address, client_mac=mac_of(1), instance="i1", attempt=1)


def test_a_server_that_moves_to_no_address_ends_the_training_with_the_reason(lines: Lines) -> None:
    server = lines.serve()
    client = lines.join(server, echo_app())
    lines.changes.wait("joined")
    client.runner.redirect(BAD_HOSTS[0], 1)
    end = client.end(WAIT_S)
    assert (end.outcome, "is not host:port" in end.reason) == (Outcome.FAILED, True)
