import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedops_mqtt.bus import ConflictingInstanceError
from fedops_mqtt.core.run import Run, RunSpec
from fedops_mqtt.manager.app import cause_of
from fedops_mqtt.manager.errors import LeaseLostError
from fedops_mqtt.manager.journal import Batch, Journal, JournaledRun, Launch
from fedops_mqtt.manager.lease import ROW_LEASE_S, STANDBY_POLL_S, FileLease, RowLease, hold_lease, wait_for_lease


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def journal(url: str) -> Iterator[Journal]:
    with Journal(url) as opened:
        yield opened


class Hands:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_file_lease_has_one_holder_and_every_holder_a_higher_term(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    clock = Hands()
    first, second = (FileLease(path, journal.engine, name, clock) for name in ("first", "second"))
    with first, second:
        assert first.try_take() == 1000
        assert second.try_take() is None
        assert second.holder() == "first"
        first.release()
        assert second.try_take() == 1001
        assert first.holder() == "second"


def row_lease(journal: Journal, name: str, clock: Hands) -> RowLease:
    return RowLease(journal.engine, name, clock, clock)


def look_for(lease: RowLease, clock: Hands, seconds: float) -> int | None:
    """Look as a standby does for so long, or until the lease is taken."""
    until, term = clock.now + seconds, lease.try_take()
    while term is None and clock.now < until:
        clock.now += STANDBY_POLL_S
        term = lease.try_take()
    return term


def test_a_row_lease_is_free_when_its_holder_lets_go_or_falls_silent(journal: Journal) -> None:
    clock = Hands()
    first, second = (row_lease(journal, name, clock) for name in ("first", "second"))
    assert first.try_take() == 1000
    assert look_for(second, clock, ROW_LEASE_S - 1) is None
    first.renew()
    assert look_for(second, clock, ROW_LEASE_S - 1) is None
    assert look_for(second, clock, 2.0) == int(clock.now)
    with pytest.raises(LeaseLostError, match="second"):
        first.renew()
    second.release()
    assert first.try_take() == int(clock.now) + 1


class SlowRenewal(RowLease):
    """Is renewing until it may end, however soon it is told to stop."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.engine, "slow")
        self.is_renewing, self.may_end = threading.Event(), threading.Event()
        self.has_ended = False

    def hold(self, stop: threading.Event) -> None:
        self.is_renewing.set()
        assert stop.wait(300)
        assert self.may_end.wait(300)
        self.has_ended = True


async def test_who_holds_a_lease_no_more_has_waited_for_the_last_renewal(journal: Journal) -> None:
    lease = SlowRenewal(journal)
    holding = asyncio.create_task(hold_lease(lease))
    await asyncio.to_thread(lease.is_renewing.wait, 300)
    holding.cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    is_done = holding.done()
    lease.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await holding
    assert (is_done, lease.has_ended) == (False, True)


def test_of_two_managers_that_see_a_new_database_at_once_one_stands_by(journal: Journal) -> None:
    clock = Hands()
    first = row_lease(journal, "first", clock)
    took: list[int | None] = []

    def clock_of_second() -> float:
        if not took:  # it has seen that there is no row, and takes it when the first one has
            took.append(first.try_take())
        return clock.now

    second = RowLease(journal.engine, "second", clock_of_second, clock)
    assert second.try_take() is None
    assert took == [1000]
    assert second.try_take() is None
    first.renew()
    assert second.holder() == "first"


def test_a_leader_stops_acting_before_its_lease_can_be_taken(journal: Journal) -> None:
    clock = Hands()
    first, second = (row_lease(journal, name, clock) for name in ("first", "second"))
    assert not first.may_act()
    first.try_take()
    while second.try_take() is None:
        could_act = first.may_act()
        clock.now += 0.05
    assert not could_act
    assert second.may_act()


def test_a_standby_that_stood_still_itself_takes_nothing_for_that(journal: Journal) -> None:
    clock = Hands()
    first, second = (row_lease(journal, name, clock) for name in ("first", "second"))
    first.try_take()
    assert second.try_take() is None
    clock.now += 100 * ROW_LEASE_S  # a busy machine, a frozen process, a database that answers late
    assert second.try_take() is None
    first.renew()
    assert look_for(second, clock, ROW_LEASE_S - 1) is None


def test_clocks_of_hosts_that_differ_decide_nothing(journal: Journal) -> None:
    clock, ahead = Hands(), Hands()
    ahead.now += 86_400
    first = RowLease(journal.engine, "first", clock, clock)
    second = RowLease(journal.engine, "second", ahead, clock)
    first.try_take()
    assert look_for(second, clock, ROW_LEASE_S - 1) is None
    assert (look_for(second, clock, 2.0) or 0) > 86_400
    assert look_for(first, clock, ROW_LEASE_S - 1) is None


def test_a_lease_that_was_lost_is_not_given_back(journal: Journal) -> None:
    clock = Hands()
    with row_lease(journal, "second", clock) as second:
        with row_lease(journal, "first", clock) as first:
            first.try_take()
            assert look_for(second, clock, ROW_LEASE_S + 1) is not None
        assert row_lease(journal, "third", clock).try_take() is None


def test_a_manager_whose_database_is_lost_still_takes_a_higher_term(tmp_path: Path) -> None:
    clock = Hands()
    terms = []
    for name in ("before.db", "after.db"):
        with Journal(f"sqlite:///{tmp_path / name}") as journal, row_lease(journal, "me", clock) as lease:
            terms.append(lease.try_take())
        clock.now += 60
    assert terms == [1000, 1060]


def test_a_clock_that_was_set_back_lowers_no_term(journal: Journal) -> None:
    clock = Hands()
    with row_lease(journal, "me", clock) as lease:
        assert lease.try_take() == 1000
        lease.release()
        clock.now -= 500
        assert lease.try_take() == 1001


def test_a_leader_that_was_frozen_while_another_took_over_writes_nothing_more(journal: Journal, url: str) -> None:
    clock = Hands()
    with Journal(url) as other:
        frozen, next_one = row_lease(journal, "old", clock), row_lease(other, "new", clock)
        journal.lead(frozen.try_take() or 0)
        journal.add_run(JournaledRun(run=a_run("run-1"), secret=b""))
        other.lead(look_for(next_one, clock, ROW_LEASE_S + 1) or 0)
        before, after = a_run("run-1"), replace(a_run("run-1"), launch=1)
        for write in (
            lambda: journal.add_run(JournaledRun(run=a_run("run-2"), secret=b"")),
            lambda: journal.write(Batch(runs={"run-1": (before, after)})),
            lambda: journal.add_launch(Launch(run_id="run-1", launch=1, log_path="log", secret_file="secret")),
        ):
            with pytest.raises(LeaseLostError, match="new"):
                write()
        assert [each.run for each in other.open_runs()] == [before]
        other.write(Batch(runs={"run-1": (before, after)}))
        assert [each.run for each in other.open_runs()] == [after]


def a_run(run_id: str) -> Run:
    return Run(spec=RunSpec(run_id=run_id, task_id="digits", num_rounds=1, min_clients=1), created_at=1.0)


def test_a_file_lease_whose_row_cannot_be_taken_is_free_for_the_next_try(journal: Journal, tmp_path: Path) -> None:
    class Broken(Hands):
        is_broken = True

        def __call__(self) -> float:
            if self.is_broken:
                raise OSError("the database is away")
            return self.now

    clock = Broken()
    with FileLease(tmp_path / "lock", journal.engine, "me", clock) as lease:
        with pytest.raises(OSError, match="is away"):
            lease.try_take()
        clock.is_broken = False
        assert lease.try_take() == 1000


async def test_who_waits_looks_outside_the_loop_and_can_be_stopped(journal: Journal, tmp_path: Path) -> None:
    stop, threads = asyncio.Event(), set[str]()

    class Watched(FileLease):
        def try_take(self) -> int | None:
            threads.add(threading.current_thread().name)
            return super().try_take()

    path = tmp_path / "lock"
    with FileLease(path, journal.engine, "pid 1") as first, Watched(path, journal.engine, "pid 2") as second:
        first.try_take()
        said = asyncio.Event()
        waiting = asyncio.ensure_future(
            wait_for_lease(second, call=journal.call, stop=stop, print_line=lambda sentence: said.set())
        )
        async with asyncio.timeout(300):
            await said.wait()
            stop.set()
            assert await waiting is None
    assert threading.main_thread().name not in threads


async def test_a_waiting_manager_reports_it_once_and_leads_when_the_lease_is_free(
    journal: Journal, tmp_path: Path
) -> None:
    path = tmp_path / "lock"
    said: asyncio.Queue[str] = asyncio.Queue()
    with FileLease(path, journal.engine, "pid 1") as first, FileLease(path, journal.engine, "pid 2") as second:
        first.try_take()
        async with asyncio.timeout(300), asyncio.TaskGroup() as group:
            waiting = group.create_task(
                wait_for_lease(second, call=journal.call, stop=asyncio.Event(), print_line=said.put_nowait)
            )
            assert "another manager leads (pid 1)" in await said.get()
            first.release()
        assert (waiting.result() or 0) > 1
        assert said.empty()


def test_of_several_failures_the_lost_lease_ends_a_manager_and_no_other_fault_is_hidden() -> None:
    lost, conflict, fault = LeaseLostError("b"), ConflictingInstanceError("a/topic", "a", "b"), KeyError("x")
    assert cause_of(ExceptionGroup("", [conflict, ExceptionGroup("", [OSError(), lost])])) is lost
    assert cause_of(ExceptionGroup("", [lost, ExceptionGroup("", [fault])])) is fault
    assert cause_of(conflict) is conflict
