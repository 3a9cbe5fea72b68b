import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedops_mqtt.manager.errors import LeaseLostError
from fedops_mqtt.manager.journal import Journal
from fedops_mqtt.manager.lease import ROW_LEASE_S, FileLease, RowLease, wait_for_lease


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(f"sqlite:///{tmp_path / 'manager.db'}") as opened:
        yield opened


class Hands:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_file_lease_has_one_holder_and_every_holder_a_higher_term(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = FileLease(path, journal.engine, "first"), FileLease(path, journal.engine, "second")
    with first, second:
        assert first.try_take() == 1
        assert second.try_take() is None
        assert second.holder() == "first"
        first.release()
        assert second.try_take() == 2
        assert first.holder() == "second"


def test_a_row_lease_is_free_when_its_holder_lets_go_or_falls_silent(journal: Journal) -> None:
    clock = Hands()
    first, second = (RowLease(journal.engine, name, clock) for name in ("first", "second"))
    assert first.try_take() == 1
    assert second.try_take() is None
    clock.now += ROW_LEASE_S - 1
    first.renew()
    clock.now += 2
    assert second.try_take() is None
    clock.now += ROW_LEASE_S
    assert second.try_take() == 2
    with pytest.raises(LeaseLostError, match="second"):
        first.renew()
    second.release()
    assert first.try_take() == 3


def test_a_lease_that_was_lost_is_not_given_back(journal: Journal) -> None:
    clock = Hands()
    with RowLease(journal.engine, "second", clock) as second:
        with RowLease(journal.engine, "first", clock) as first:
            first.try_take()
            clock.now += ROW_LEASE_S + 1
            assert second.try_take() == 2
        assert RowLease(journal.engine, "third", clock).try_take() is None


async def test_who_waits_says_so_once_and_leads_when_the_lease_is_free(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    said: asyncio.Queue[str] = asyncio.Queue()
    with FileLease(path, journal.engine, "pid 1") as first, FileLease(path, journal.engine, "pid 2") as second:
        first.try_take()
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            waiting = group.create_task(wait_for_lease(second, say=said.put_nowait))
            assert "another manager leads (pid 1)" in await said.get()
            first.release()
        assert waiting.result() == 2
        assert said.empty()
