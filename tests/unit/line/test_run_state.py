"""Since when a quorum is missing, where all who can come have come."""

import time

from fedops_mqtt.line.run_state import RunState, Session
from fedops_mqtt.line.wire import JoinRequest

MOST = 2


def join(state: RunState, number: int, *, attempt: int = 1) -> Session:
    mac = f"02:00:00:00:00:{number:02x}"
    return state.admit(JoinRequest(client_mac=mac, instance="i", attempt=attempt))


def test_the_rejoin_limit_begins_when_a_client_is_lost_and_not_before_all_have_come() -> None:
    state = RunState(on_member=lambda change: None)
    first, last = join(state, 1), join(state, 2)
    state.attach(first)
    state.detach(first, "connection closed")
    assert state.missing_since(2, MOST) is None, "the last one has not opened its control request"
    state.attach(last)
    lost_at = state.missing_since(2, MOST)
    assert lost_at is not None
    assert state.missing_since(2, None) is None, "others may come"
    assert state.missing_since(1, MOST) == 0.0, "one is there"
    again = join(state, 1)
    state.attach(first)  # its control request was under way as the next session came
    state.detach(again, "no control request")
    assert state.missing_since(2, MOST) == lost_at, "who joins again and again is not waited for longer"
    between = time.monotonic()
    state.detach(last, "connection closed")
    assert state.missing_since(2, MOST) == lost_at <= between, "both must come back, and this one is waited for longest"
    later = state.missing_since(1, MOST)
    assert later is not None
    assert later >= between, "one of them is enough"


def test_a_newer_attempt_has_not_come_before_its_control_request_is_open() -> None:
    state = RunState(on_member=lambda change: None)
    for number in (1, 2):
        state.attach(join(state, number))
    newer = join(state, 1, attempt=2)
    assert state.missing_since(2, MOST) is None
    state.attach(newer)
    state.detach(newer, "connection closed")
    assert state.missing_since(2, MOST) is not None
