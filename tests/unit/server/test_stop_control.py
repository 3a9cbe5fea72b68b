"""How a signal asks a run to end: what the manager wrote down before it counts."""

import signal
from pathlib import Path

import pytest

from fedops_mqtt.aggregation.stop_control import REPLACED, EndRequest, StopControl
from fedops_mqtt.protocol import RunOutcome


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("failed\n1 client left, 2 needed", EndRequest(outcome=RunOutcome.FAILED, reason="1 client left, 2 needed")),
        ("stopped\nenough\nfor today", EndRequest(outcome=RunOutcome.STOPPED, reason="enough\nfor today")),
        (f"{REPLACED}\nsilent", EndRequest(outcome=RunOutcome.STOPPED, reason="silent", is_replaced=True)),
        ("", EndRequest(outcome=RunOutcome.STOPPED, reason="the FL server was ended by SIGTERM")),
        (b"\xff", EndRequest(outcome=RunOutcome.STOPPED, reason="the FL server was ended by SIGTERM")),
        (None, EndRequest(outcome=RunOutcome.STOPPED, reason="the FL server was ended by SIGTERM")),
    ],
    ids=repr,
)
def test_what_became_of_the_run_is_what_was_written_before_the_signal(
    tmp_path: Path, written: str | bytes | None, expected: EndRequest
) -> None:
    file = tmp_path / "server-1.stop-reason"
    if written is not None:
        file.write_bytes(written.encode() if isinstance(written, str) else written)
    ending = StopControl(grace_s=60.0, reason_file=file)
    with ending.on_signals():
        signal.raise_signal(signal.SIGTERM)
    assert ending.requested == expected
