"""A run of any size has a status that a message carries and a reader takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedops_mqtt.protocol import (
    Channel,
    MemberCondition,
    ReasonCode,
    Roster,
    RunCondition,
    RunMember,
    RunStatus,
    ServerClient,
    ServerCondition,
    ServerStatus,
    decode,
    encode,
    topics,
    utc_now,
    with_clients,
)
from fedops_mqtt.protocol.roster import _CLIENT_BYTES, MAX_LISTED, MAX_SENT_BYTES


def mac(number: int) -> str:
    return f"02:00:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"


@pytest.mark.parametrize(
    "reason", [None, "\x00" * 200, *(pytest.param(each * 200, marks=pytest.mark.long) for each in "xü[")]
)
@pytest.mark.parametrize("number", [3, MAX_LISTED + 5, pytest.param(MAX_LISTED, marks=pytest.mark.long)])
@pytest.mark.parametrize("run_reason", [None, "\x00" * 4096])
def test_a_roster_of_any_size_and_any_reasons_fits_its_message(
    number: int, reason: str | None, run_reason: str | None
) -> None:
    failed = RunMember(status=MemberCondition.FAILED, attempt=3, reason=reason)
    status = RunStatus(
        instance="i" * 256, epoch=2**53, seq=2**52, at=utc_now(), run_id="r" * 64, task_id="t" * 64,
        reason=run_reason, status=RunCondition.RUNNING, created_at=utc_now(),
        clients_by_status={MemberCondition.FAILED: number}, metrics={f"{'m' * 180}{n}": 1.0 for n in range(256)},
    )  # fmt: skip
    listing = with_clients(status, Roster().part({mac(each): failed for each in range(number)}))
    written = encode(listing)
    assert len(written) <= MAX_SENT_BYTES
    read = decode(topics.run_status("t" * 64, "r" * 64), written)
    assert isinstance(read, RunStatus)
    assert len(read.clients) == min(number, MAX_LISTED)
    if number == 3:
        assert read.clients[mac(0)].reason == reason


WELL = ServerClient(status=MemberCondition.TRAINING, attempt=1)
FAILED = ServerClient(status=MemberCondition.FAILED, attempt=1, reason="why")


def test_those_in_trouble_are_listed_before_those_who_are_well_and_each_time_once_all_are_known() -> None:
    clients = {mac(each): WELL for each in range(2 * MAX_LISTED)} | {mac(2 * MAX_LISTED): FAILED}
    roster = Roster()
    listed = [roster.part(clients) for _ in range(6)]
    assert {len(part) for part in listed} == {MAX_LISTED}
    assert [mac(2 * MAX_LISTED) in part for part in listed] == [True, False, True, True, True, True]


def test_the_next_statuses_list_the_others() -> None:
    clients = {mac(each): WELL for each in range(3 * MAX_LISTED)}
    roster = Roster()
    for _ in range(2):  # and then all over again, for newcomers
        listed = {name for _ in range(3) for name in roster.part(clients)}
        assert listed == clients.keys()


@given(st.lists(st.sampled_from([*MemberCondition]), max_size=30))
def test_what_changed_is_in_the_next_status_whatever_else_there_is(later: list[MemberCondition]) -> None:
    clients = {mac(each): WELL if each % 2 else FAILED for each in range(MAX_LISTED + 500)}
    roster = Roster()
    for _ in range(2):
        roster.part(clients)
    changed = {mac(7 * each): ServerClient(status=status, attempt=2) for each, status in enumerate(later)}
    listed = roster.part(clients | changed)
    assert {name: listed[name] for name in changed} == changed


def test_the_largest_line_of_a_client_is_as_large_as_is_reckoned_with() -> None:
    code = max(ReasonCode, key=len)
    facts = {"attempt": 2**31, "phase": "downloading", "round": 2**31, "reason_code": code}
    widest = ServerClient(status=MemberCondition.TRIGGERED, **facts)
    one, two = (
        len(encode(ServerStatus(
            instance="i", epoch=1, seq=1, at=utc_now(), task_id="t", status=ServerCondition.READY,
            clients={mac(each): widest for each in range(number)},
        )))
        for number in (1, 2)
    )  # fmt: skip
    assert two - one <= _CLIENT_BYTES
    assert Channel.SERVER_STATUS.max_payload_bytes == Channel.RUN_STATUS.max_payload_bytes
