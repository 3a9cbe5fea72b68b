"""A manager over PostgreSQL: its database is stopped, frozen and started again while it leads."""

import asyncio
import logging
import shutil

import psutil
import pytest
from manager_parts import A, Api, B, House, api_at, manager_process, run_that_ends_without_a_manager, until
from postgres import Postgres, frozen
from sqlalchemy import event, func, select, update

from fedops_mqtt.manager import tables
from fedops_mqtt.manager.journal import Batch, Journal, JournalEvent
from fedops_mqtt.manager.lease import ROW_LEASE_S, RowLease
from fedops_mqtt.runtime.machine import host_name

pytestmark = pytest.mark.long


async def test_a_lost_database_ends_no_process_and_nothing_is_done_that_is_not_in_it(
    house: House, own_postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    house.write_tasks("min_clients = 2")
    caplog.set_level(logging.WARNING)
    url = own_postgres.new_database()
    async with house.managed(database_url=url) as api, house.device(A) as a, house.device(B) as b:
        await until(lambda: has_clients(api, 2), "the clients")
        await asyncio.to_thread(own_postgres.stop)
        starting = asyncio.create_task(api.start(house.task_id))
        for _ in range(3):
            refused = await api.http.get("/api/v1/runs")
            assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
            assert "the database cannot be reached" in refused.json()["detail"]
        assert (await api.get("/clients"))["total"] == 2, "who is here is known without it"
        await until(lambda: is_logged(caplog, "the database is not available"), "the manager's word on it")
        assert not starting.done()
        assert house.servers() == []
        await asyncio.to_thread(own_postgres.start)
        run_id = await starting
        await api.training(run_id)

        await asyncio.to_thread(own_postgres.stop)
        house.command_server("finish", "all rounds done")
        a.finishes()
        b.finishes()
        assert (await api.http.get("/api/v1/runs")).status_code == 503
        await asyncio.to_thread(own_postgres.start)
        run = await api.ended(run_id)
        assert (run["outcome"], run["reason"], run["launch"]) == ("completed", "all rounds done", 1)
        assert [(each.attempt, each.launch) for each in a.starts + b.starts] == [(1, 1), (1, 1)]
        await until(lambda: api.events(run_id, "RunClosed"), "the end in the journal")
        assert len(await api.events(run_id, "RunClosed")) == 1


def move_launches(url: str, host: str, **more: str) -> None:
    """As if the servers that are there were launched on a host of this name."""
    with Journal(url) as journal, journal.engine.begin() as connection:
        connection.execute(update(tables.launches).values(host=host, **more))


OTHER_BOOT = {"process_key": "0a1b2c3d-0000-4000-8000-000000000000:4711"}
"""Of a process of another host."""


@pytest.mark.parametrize("host", ["far-away", f"{host_name()} (0123456789ab)"], ids=["other-name", "same-name"])
async def test_a_server_on_another_host_goes_on_when_a_manager_elsewhere_takes_over(
    house: House, postgres: Postgres, host: str
) -> None:
    url = postgres.new_database()
    async with house.device(A) as a, house.device(B) as b:
        async with manager_process(house, database_url=url) as first, api_at(first.url) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
            first.kill()
            await first.gone()
        server = house.server()
        move_launches(url, host, **OTHER_BOOT)
        async with house.managed(database_url=url, state_dir=house.folder / "elsewhere", archive_after_s=0.5) as api:
            await api.training(run_id)
            house.command_server("finish", "all rounds done")
            a.finishes()
            b.finishes()
            run = await api.ended(run_id)
            assert (run["outcome"], run["reason"], run["launch"]) == ("completed", "all rounds done", 1)
            await asyncio.to_thread(psutil.wait_procs, [server], 20)
            await until(lambda: is_told_exit(api, run_id), "the end of its launch")


async def test_a_host_that_was_renamed_ends_its_server(house: House, postgres: Postgres) -> None:
    url = postgres.new_database()
    async with house.device(A), house.device(B):
        async with house.managed(database_url=url, ends_servers=False) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
        server = house.server()
        move_launches(url, "its-former-name (0123456789ab)")
        async with house.managed(database_url=url) as api:
            await api.training(run_id)
            await api.http.post(f"/api/v1/runs/{run_id}/stop", json={})
            assert (await api.ended(run_id))["outcome"] == "stopped"
            await asyncio.to_thread(psutil.wait_procs, [server])
            (exited,) = await until(lambda: api.events(run_id, "ServerExited"), "the end of its launch")
            assert "another host" not in exited["detail"]["reason"]


async def is_told_exit(api: Api, run_id: str) -> bool:
    return bool(await api.events(run_id, "ServerExited"))


async def test_a_server_whose_host_is_lost_is_launched_again_where_the_next_manager_is(
    house: House, postgres: Postgres
) -> None:
    """All that the launch needs is in the database: the host and its disk are gone."""
    url = postgres.new_database()
    async with house.device(A), house.device(B):
        async with manager_process(house, database_url=url) as first, api_at(first.url) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
            first.kill()
            await first.gone()
        house.server().kill()
        move_launches(url, "far-away", **OTHER_BOOT)
        shutil.rmtree(house.folder / "state")
        house.tasks_file.write_text("")
        async with house.managed(database_url=url, state_dir=house.folder / "elsewhere") as api:
            run = await api.run_when(run_id, lambda run: run["launch"] == 2 and run["status"] == "running")
            assert run["outcome"] is None
            secret = house.folder / "elsewhere/manager/secrets" / run_id
            with Journal(url) as journal:
                assert [each.secret.hex() for each in journal.open_runs()] == [secret.read_text()]


async def test_a_server_that_ended_unreported_on_a_lost_host_is_known_from_the_store(
    house: House, postgres: Postgres
) -> None:
    """No manager and no broker received its end, and its host's disk is gone: the store has its final status."""
    url = postgres.new_database()
    async with house.device(A) as a, house.device(B) as b:
        house.command_server("unpublished")
        run_id = await run_that_ends_without_a_manager(house, a, b, database_url=url)
        move_launches(url, "far-away")
        shutil.rmtree(house.folder / "state")
        async with house.managed(database_url=url, state_dir=house.folder / "elsewhere") as api:
            run = await api.ended(run_id)
            assert (run["outcome"], run["reason"], run["launch"]) == ("completed", "all rounds done", 1)
            assert run["metrics"] == {"accuracy": 0.5}
            assert [(each.attempt, each.launch) for each in a.starts + b.starts] == [(1, 1), (1, 1)]


async def has_clients(api: Api, number: int) -> bool:
    return bool((await api.get("/clients"))["total"] == number)


async def is_logged(caplog: pytest.LogCaptureFixture, sentence: str) -> bool:
    return any(sentence in record.getMessage() for record in caplog.records)


async def test_a_leader_whose_database_froze_longer_than_its_lease_goes_on_leading(
    house: House, own_postgres: Postgres
) -> None:
    """Its standby saw nothing change for as long, and counts none of it."""
    house.write_tasks("min_clients = 1")
    url = own_postgres.new_database()
    async with house.managed(database_url=url) as api, house.device(A):
        with Journal(url) as journal, RowLease(journal.engine, "standby") as standby:

            def look() -> int | None:
                return standby.try_take()

            assert await asyncio.to_thread(look) is None
            with frozen(own_postgres):
                looking = asyncio.create_task(asyncio.to_thread(look))
                await asyncio.sleep(1.5 * ROW_LEASE_S)  # the time itself is what is tested
            assert await looking is None
            run_id = await api.start(house.task_id)
            await api.training(run_id, 1)
            assert await asyncio.to_thread(look) is None


def test_a_write_with_an_unconfirmed_commit_is_made_once(own_postgres: Postgres) -> None:
    with Journal(own_postgres.new_database()) as journal, RowLease(journal.engine, "me") as lease:
        journal.lead(lease.try_take() or 0)
        cut: list[bool] = []

        @event.listens_for(journal.engine, "commit")
        def commit_and_cut(connection: object) -> None:
            if not cut:
                cut.append(True)
                dbapi = connection.connection.dbapi_connection  # type: ignore[attr-defined]
                dbapi.commit()
                dbapi.close()

        journal.wait_for(journal.write, Batch(events=[JournalEvent(at=1.0, kind="K")]))
        journal.wait_for(journal.write, Batch(events=[JournalEvent(at=2.0, kind="L")]))
        with journal.engine.connect() as connection:
            assert connection.execute(select(func.count()).select_from(tables.events)).scalar_one() == 2


def test_an_outage_is_logged_once_by_the_process_that_waits(
    own_postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="fedops_mqtt.manager.lease")
    with (
        Journal(own_postgres.new_database()) as journal,
        RowLease(journal.engine, "leader") as leader,
        RowLease(journal.engine, "standby") as standby,
    ):
        assert leader.try_take() is not None
        for _ in range(2):
            caplog.clear()
            own_postgres.stop()
            assert [standby.try_take() for _ in range(3)] == [None] * 3
            own_postgres.start()
            assert [standby.try_take() for _ in range(3)] == [None] * 3
            assert [record.getMessage() for record in caplog.records] == [
                "the database is not available, no manager can lead",
                "the database answers again",
            ]
