"""Who speaks on a retained topic: repair, adoption, and which of two rivals yields."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedops_mqtt.core.fencing import LAST_SEQ, Stamp
from fedops_mqtt.core.ownership import (
    REPAIR_INTERVAL_S,
    Adopt,
    Ignore,
    Ownership,
    Repair,
    SeenStatus,
    Yield,
    judge,
    judge_cleared,
    new_instance,
    next_beat_s,
    next_epoch,
)

OLD, ME, NEW = (new_instance(ms, "0f") for ms in (1_000, 2_000, 3_000))
speaking = Ownership(instance=ME, epoch=10, is_echoed=True)
seen_statuses = st.builds(
    SeenStatus,
    instance=st.sampled_from([OLD, ME, NEW]),
    epoch=st.integers(1, 20),
    is_out=st.booleans(),
    is_retained=st.booleans(),
)


def seen_status(instance: str, epoch: int, *, is_out: bool = False, is_retained: bool = False) -> SeenStatus:
    return SeenStatus(instance=instance, epoch=epoch, is_out=is_out, is_retained=is_retained)


def test_an_instance_sorts_after_the_one_before_even_where_the_clock_was_set_back() -> None:
    assert new_instance(5, "00", last_epoch=1_760_000_000_000) > new_instance(1_760_000_000_000, "ff")
    assert len(new_instance(5, "00", last_epoch=2**61)) == len(ME)


def test_instances_sort_by_their_start() -> None:
    assert sorted([NEW, OLD, ME]) == [OLD, ME, NEW]


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_a_new_epoch_is_above_the_last_whatever_the_clock_shows(persisted: int, unix_ms: int) -> None:
    assert next_epoch(persisted, unix_ms) > persisted
    assert next_epoch(persisted, unix_ms) >= unix_ms


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, LAST_SEQ - 1))
def test_a_will_is_above_its_connection_and_below_the_next(epoch: int, later: int, seq: int) -> None:
    will = Stamp(epoch, LAST_SEQ)
    assert will > Stamp(epoch, seq)
    assert Stamp(epoch + 1 + later, 0) > will


def test_an_echo_is_ignored() -> None:
    owner, decision = judge(replace(speaking, is_echoed=False), seen_status(ME, 10), now=0)
    assert (owner.is_echoed, decision) == (True, Ignore())


def test_a_lower_epoch_after_the_own_status_is_repaired() -> None:
    assert judge(speaking, seen_status(ME, 9, is_out=True), now=5)[1] == Repair(5)


def test_a_lower_epoch_before_the_own_status_needs_no_repair() -> None:
    assert judge(replace(speaking, is_echoed=False), seen_status(OLD, 9, is_retained=True), now=5)[1] == Ignore()


def test_repairs_come_at_most_once_a_second() -> None:
    owner, first = judge(speaking, seen_status(ME, 9, is_out=True), now=5)
    _, second = judge(owner, seen_status(ME, 9, is_out=True), now=5.1)
    assert (first, second) == (Repair(5), Repair(5 + REPAIR_INTERVAL_S))


def test_a_flood_of_old_statuses_schedules_one_repair_not_a_queue_of_them() -> None:
    owner, latest = speaking, 0.0
    for _ in range(100):
        owner, decision = judge(owner, seen_status(ME, 9, is_out=True), now=5)
        if isinstance(decision, Repair):
            latest = max(latest, decision.at)
    assert latest <= 5 + REPAIR_INTERVAL_S


def test_a_cleared_topic_is_published_again() -> None:
    assert judge_cleared(speaking, now=5)[1] == Repair(5)


def test_a_retained_higher_epoch_from_before_is_adopted() -> None:
    assert judge(speaking, seen_status(OLD, 99, is_retained=True), now=0)[1] == Adopt(99)


def test_a_late_will_with_a_higher_epoch_is_adopted() -> None:
    assert judge(speaking, seen_status(OLD, 99, is_out=True), now=0)[1] == Adopt(99)


def test_a_status_in_the_owners_name_that_is_ahead_leads_to_a_higher_epoch() -> None:
    forged = replace(seen_status(ME, 10), is_ahead=True)
    assert judge(speaking, forged, now=0)[1] == Adopt(10)
    assert judge(speaking.connected(11), forged, now=0)[1] == Ignore()


@pytest.mark.parametrize("epoch", [9, 10, 11])
def test_an_owner_yields_to_a_newer_online_instance_whatever_its_clock_shows(epoch: int) -> None:
    assert judge(speaking, seen_status(NEW, epoch), now=0)[1] == Yield(NEW, epoch)


@pytest.mark.parametrize(("epoch", "decision"), [(9, Repair(0)), (11, Adopt(11))])
def test_an_older_living_instance_is_overruled(epoch: int, decision: object) -> None:
    assert judge(speaking, seen_status(OLD, epoch), now=0)[1] == decision


def test_a_newer_instance_that_left_is_no_conflict() -> None:
    assert judge(speaking, seen_status(NEW, 9, is_out=True), now=0)[1] == Repair(0)
    assert judge(speaking, seen_status(NEW, 11, is_out=True, is_retained=True), now=0)[1] == Adopt(11)


def test_a_newer_instance_that_reconnects_conflicts_even_if_only_its_wills_are_seen() -> None:
    owner, first = judge(speaking, seen_status(NEW, 11, is_out=True, is_retained=True), now=0)
    _, second = judge(owner.connected(12), seen_status(NEW, 13, is_out=True, is_retained=True), now=1)
    assert (first, second) == (Adopt(11), Yield(NEW, 13))


@given(st.lists(seen_statuses))
def test_of_two_instances_only_the_older_ever_yields(seen: list[SeenStatus]) -> None:
    owner = speaking
    for each in seen:
        owner, decision = judge(owner, each, now=0)
        assert not isinstance(decision, Yield) or decision.instance > owner.instance


@given(st.lists(seen_statuses), st.integers(1, 20))
def test_an_owner_ends_above_every_status_it_reads_or_yields(seen: list[SeenStatus], epoch: int) -> None:
    owner, persisted = Ownership(instance=ME).connected(epoch), epoch
    for each in seen:
        owner, decision = judge(owner, each, now=0)
        match decision:
            case Adopt(higher):
                persisted = max(persisted, higher)
                owner = owner.connected(next_epoch(persisted, 0))
            case Yield():
                return
        assert owner.epoch > each.epoch or (owner.epoch == each.epoch and each.instance == ME)


@given(st.floats(0.1, 1e6), st.floats(0, 1))
def test_a_heartbeat_comes_in_time_and_at_most_a_fifth_early(heartbeat_s: float, luck: float) -> None:
    assert 0.79 * heartbeat_s <= next_beat_s(heartbeat_s, luck) <= heartbeat_s


def test_heartbeats_of_a_fleet_drift_apart() -> None:
    assert len({next_beat_s(60.0, number / 100) for number in range(100)}) == 100
