"""A run of any size has a status that a message carries and a reader takes."""

import pytest

from fedops_mqtt.protocol import (
    Channel,
    MemberCondition,
    RunCondition,
    RunMember,
    RunStatus,
    ServerClient,
    ServerCondition,
    ServerStatus,
    decode,
    encode,
    roster,
    topics,
    utc_now,
)
from fedops_mqtt.protocol.values import MAX_MEMBERS


def mac(number: int) -> str:
    return f"02:00:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"


@pytest.mark.parametrize("reason", [None, "x" * 200, "\x00" * 200, "ü" * 200, "[" * 200])
@pytest.mark.parametrize("number", [3, 1000, MAX_MEMBERS, MAX_MEMBERS + 5])
def test_a_roster_of_any_size_and_any_reasons_fits_its_message(number: int, reason: str | None) -> None:
    failed = RunMember(status=MemberCondition.FAILED, attempt=3, reason=reason)
    status = RunStatus(
        instance="i" * 256, epoch=2**53, seq=2**52, at=utc_now(), run_id="r" * 64, task_id="t" * 64,
        reason="\x00" * 4096, status=RunCondition.RUNNING, created_at=utc_now(),
        clients_by_status={MemberCondition.FAILED: number},
        clients=roster.fit({mac(each): failed for each in range(number)}),
    )  # fmt: skip
    read = decode(topics.run_status("t" * 64, "r" * 64), encode(status))
    assert isinstance(read, RunStatus)
    assert len(read.clients) == min(number, MAX_MEMBERS)
    if number == 3:
        assert read.clients[mac(0)].reason == reason


def test_those_in_trouble_are_listed_before_those_who_are_well() -> None:
    well = ServerClient(status=MemberCondition.TRAINING, attempt=1)
    failed = ServerClient(status=MemberCondition.FAILED, attempt=1, reason="why")
    clients = {mac(each): well for each in range(MAX_MEMBERS)} | {mac(MAX_MEMBERS): failed}
    listed = roster.fit(clients)
    assert len(listed) == MAX_MEMBERS
    assert listed[mac(MAX_MEMBERS)] == failed


def test_the_largest_line_of_a_client_is_as_large_as_is_reckoned_with() -> None:
    widest = ServerClient(status=MemberCondition.TRIGGERED, attempt=2**31, phase="downloading", round=2**31)
    one, two = (
        len(encode(ServerStatus(
            instance="i", epoch=1, seq=1, at=utc_now(), task_id="t", status=ServerCondition.READY,
            clients={mac(each): widest for each in range(number)},
        )))
        for number in (1, 2)
    )  # fmt: skip
    assert two - one <= roster._CLIENT_BYTES
    assert Channel.SERVER_STATUS.max_payload_bytes == Channel.RUN_STATUS.max_payload_bytes
