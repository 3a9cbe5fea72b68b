import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedops_mqtt.core.run import Run, RunSpec
from fedops_mqtt.manager.errors import LeaseLostError
from fedops_mqtt.manager.journal import Batch, Journal, JournaledRun, Launch
from fedops_mqtt.manager.lease import ROW_LEASE_S, FileLease, RowLease, wait_for_lease


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'manager.db'}"


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


def test_a_row_lease_is_free_when_its_holder_lets_go_or_falls_silent(journal: Journal) -> None:
    clock = Hands()
    first, second = (RowLease(journal.engine, name, clock) for name in ("first", "second"))
    assert first.try_take() == 1000
    assert second.try_take() is None
    clock.now += ROW_LEASE_S - 1
    first.renew()
    clock.now += 2
    assert second.try_take() is None
    clock.now += ROW_LEASE_S
    assert second.try_take() == 1031
    with pytest.raises(LeaseLostError, match="second"):
        first.renew()
    second.release()
    assert first.try_take() == 1032


def test_a_lease_that_was_lost_is_not_given_back(journal: Journal) -> None:
    clock = Hands()
    with RowLease(journal.engine, "second", clock) as second:
        with RowLease(journal.engine, "first", clock) as first:
            first.try_take()
            clock.now += ROW_LEASE_S + 1
            assert second.try_take() == 1016
        assert RowLease(journal.engine, "third", clock).try_take() is None


def test_a_manager_whose_database_is_lost_still_takes_a_higher_term(tmp_path: Path) -> None:
    clock = Hands()
    terms = []
    for name in ("before.db", "after.db"):
        with Journal(f"sqlite:///{tmp_path / name}") as journal, RowLease(journal.engine, "me", clock) as lease:
            terms.append(lease.try_take())
        clock.now += 60
    assert terms == [1000, 1060]


def test_a_clock_that_was_set_back_lowers_no_term(journal: Journal) -> None:
    clock = Hands()
    with RowLease(journal.engine, "me", clock) as lease:
        assert lease.try_take() == 1000
        lease.release()
        clock.now -= 500
        assert lease.try_take() == 1001


def test_a_leader_that_was_frozen_while_another_took_over_writes_nothing_more(journal: Journal, url: str) -> None:
    clock = Hands()
    with Journal(url) as other:
        frozen, next_one = (RowLease(each.engine, name, clock) for each, name in ((journal, "old"), (other, "new")))
        journal.lead(frozen.try_take() or 0)
        journal.add_run(JournaledRun(run=a_run("run-1"), secret=b""))
        clock.now += ROW_LEASE_S + 1
        other.lead(next_one.try_take() or 0)
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
            wait_for_lease(second, call=journal.call, stop=stop, say=lambda sentence: said.set())
        )
        async with asyncio.timeout(300):
            await said.wait()
            stop.set()
            assert await waiting is None
    assert threading.main_thread().name not in threads


async def test_who_waits_says_so_once_and_leads_when_the_lease_is_free(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    said: asyncio.Queue[str] = asyncio.Queue()
    with FileLease(path, journal.engine, "pid 1") as first, FileLease(path, journal.engine, "pid 2") as second:
        first.try_take()
        async with asyncio.timeout(300), asyncio.TaskGroup() as group:
            waiting = group.create_task(
                wait_for_lease(second, call=journal.call, stop=asyncio.Event(), say=said.put_nowait)
            )
            assert "another manager leads (pid 1)" in await said.get()
            first.release()
        assert (waiting.result() or 0) > 1
        assert said.empty()
