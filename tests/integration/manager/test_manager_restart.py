"""A manager that is killed, restarted, doubled: journal, retained statuses and lease carry the runs over."""

import asyncio
import signal
import time
from datetime import datetime

import psutil
import pytest
from manager_parts import (
    PATIENCE_S,
    A,
    B,
    House,
    api_at,
    manager_process,
    run_that_ends_without_a_manager,
    until,
    until_logged,
)
from sqlalchemy import select, update

from fedops_mqtt.bus import Connection, Received
from fedops_mqtt.cli.roles import BUNDLE_SERVER
from fedops_mqtt.core.run import Run, RunSpec, apply
from fedops_mqtt.core.run_member import ServerLaunched
from fedops_mqtt.manager import tables
from fedops_mqtt.manager.app import run_manager
from fedops_mqtt.manager.journal import Batch, Journal, JournaledRun
from fedops_mqtt.manager.tasks import Tasks
from fedops_mqtt.protocol import ManagerCondition, ManagerStatus, topics
from fedops_mqtt.runtime.systemd import ExitCode

AFTER_PRUNING_S = 3.0
"""At least: what a manager would delete as it begins is deleted by then."""


@pytest.mark.long
async def test_a_manager_killed_during_a_run_finishes_it_when_it_is_started_again(house: House) -> None:
    async with house.device(A) as a, house.device(B) as b:
        async with manager_process(house) as first, api_at(first.url) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
            first.kill()
            await first.gone()
        server = house.server()
        async with manager_process(house) as second, api_at(second.url) as api:
            run = await api.training(run_id)
            assert (run["launch"], server.is_running()) == (1, True)
            house.command_server("finish", "all rounds done")
            a.finishes()
            b.finishes()
            run = await api.ended(run_id)
            assert (run["outcome"], run["reason"], run["metrics"]) == (
                "completed",
                "all rounds done",
                {"accuracy": 0.5},
            )
            assert [(each.attempt, each.launch) for each in a.starts + b.starts] == [(1, 1), (1, 1)]
            exits = await until(lambda: api.events(run_id, "ServerExited"), "the server's exit")
            assert exits[0]["detail"]["launch"] == 1


@pytest.mark.long
async def test_a_run_that_ended_while_no_manager_ran_is_known_with_its_outcome(house: House) -> None:
    async with house.device(A) as a, house.device(B) as b:
        run_id = await run_that_ends_without_a_manager(house, a, b)
        async with manager_process(house) as second, api_at(second.url) as api:
            run = await api.ended(run_id)
            assert (run["outcome"], run["reason"], run["launch"]) == ("completed", "all rounds done", 1)
            await api.run_when(run_id, lambda run: {each["status"] for each in run["clients"].values()} == {"finished"})


async def test_a_server_that_died_while_no_manager_was_there_is_launched_again(house: House) -> None:
    async with house.device(A) as a, house.device(B):
        async with manager_process(house) as first, api_at(first.url) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
            first.kill()
            await first.gone()
        server = house.server()
        server.kill()
        await asyncio.to_thread(psutil.wait_procs, [server], 20)
        async with manager_process(house) as second, api_at(second.url) as api:
            await api.run_when(run_id, lambda run: run["launch"] == 2 and run["status"] == "running")
            await until(lambda: _said(len(a.starts) == 2), "the second aim")
            assert (a.starts[1].attempt, a.starts[1].launch) == (1, 2)
            assert a.starts[1].term > a.starts[0].term


@pytest.mark.long
async def test_a_run_keeps_its_task_when_the_tasks_file_loses_it_and_over_a_restart(house: House) -> None:
    async with house.device(A), house.device(B):
        async with manager_process(house) as first, api_at(first.url) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
            house.tasks_file.write_text("[tasks.other]\nmodule = 'm'")
            assert [each["task_id"] for each in (await api.get("/tasks"))["items"]] == ["other"]
            house.server().kill()
            await api.run_when(run_id, lambda run: run["launch"] == 2 and run["status"] == "running")
            first.kill()
            await first.gone()
        house.server().kill()
        async with manager_process(house) as second, api_at(second.url) as api:
            await api.run_when(run_id, lambda run: run["launch"] == 3 and run["status"] == "running")


@pytest.mark.long
async def test_a_stopped_manager_publishes_offline_and_leaves_its_runs_alone(house: House) -> None:
    topic = topics.manager_status()
    async with house.device(A), house.device(B), Connection(house.broker.url, subscriptions=[str(topic)]) as reader:
        async with manager_process(house) as manager, api_at(manager.url) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
            manager.process.send_signal(signal.SIGTERM)
            assert await manager.gone() == 0
        assert (await final_status(reader, ManagerCondition.MANAGER_OUT)).reason == "shutdown"
        server = house.server()
        assert server.is_running()


async def test_a_second_manager_waits_reports_it_and_takes_over_with_a_higher_term(house: House) -> None:
    topic = topics.manager_status()
    async with (
        house.device(A) as a,
        house.device(B) as b,
        Connection(house.broker.url, subscriptions=[str(topic)]) as bus,
    ):
        async with manager_process(house) as first, manager_process(house, waits=False) as second:
            waiting = await until_logged(second, "on standby")
            assert f"pid {first.process.pid}" in waiting
            async with api_at(first.url) as api:
                run_id = await api.start(house.task_id)
                await api.training(run_id)
                term = (await api.get("/health"))["term"]
            first.kill()
            await until_logged(second, "ready")
            async with api_at(second.url) as api:
                assert (await api.get("/health"))["term"] > term
                house.command_server("finish", "all rounds done")
                a.finishes()
                b.finishes()
                assert (await api.ended(run_id))["outcome"] == "completed"
        assert (await final_status(bus, ManagerCondition.LEADING, term=term + 1)).term > term
        assert len(a.starts) == 1


@pytest.mark.long
async def test_a_manager_that_waits_can_be_stopped(house: House) -> None:
    async with manager_process(house), manager_process(house, waits=False) as second:
        await until_logged(second, "on standby")
        second.process.send_signal(signal.SIGTERM)
        assert await second.gone() == 0


async def test_a_launch_that_was_written_down_and_never_happened_is_done_again(house: House) -> None:
    """The manager died between writing the launch down and starting the process."""
    run = Run(spec=RunSpec(run_id="run-1", task_id=house.task_id, num_rounds=1, min_clients=2), created_at=time.time())
    (house.folder / "state").mkdir()
    with journal_of(house) as journal:
        journal.add_run(JournaledRun(run=run, secret=b"s" * 32))
        journal.write(Batch(runs={"run-1": (run, apply(run, ServerLaunched(1), time.time()))}))
    async with house.managed() as api, house.device(A), house.device(B):
        assert (await api.training("run-1"))["launch"] == 1
        assert await api.events("run-1", "ServerExited") == []


@pytest.mark.long
async def test_a_clock_that_is_set_forward_between_two_managers_ends_no_run_and_deletes_no_history(
    house: House,
) -> None:
    """A host without a battery gets the time of day late; the run's limit is a day, events are kept for 90."""
    late_s = 100 * 86400.0
    async with house.device(A) as a, house.device(B) as b:
        async with house.managed(ends_servers=False, wall_clock=lambda: time.time() - late_s) as api:
            run_id = await api.start(house.task_id)
            created_at = (await api.training(run_id))["created_at"]
        async with house.managed(archive_after_s=0.1) as api:
            await api.training(run_id)
            house.command_server("finish", "all rounds done")
            a.finishes()
            b.finishes()
            run = await api.ended(run_id)
            assert (run["outcome"], run["launch"], run["created_at"]) == ("completed", 1, created_at)
            await asyncio.sleep(AFTER_PRUNING_S)
            assert await api.events(run_id, "RunCreated")
        house.take_back("finish")
        async with house.managed() as api:  # without an open run, the time of day holds
            await asyncio.sleep(AFTER_PRUNING_S)
            assert await api.events(run_id, "RunCreated")
            later = await api.run(await api.start(house.task_id))
            age = datetime.fromisoformat(later["created_at"]) - datetime.fromisoformat(created_at)
            assert age.total_seconds() > late_s - 1


async def test_a_run_that_cannot_be_read_keeps_no_manager_from_leading(house: House) -> None:
    """A limit without end was journaled as null once, and no manager started any more."""
    async with house.managed() as api:
        run_id = await api.start(house.task_id)
        await api.http.post(f"/api/v1/runs/{run_id}/stop")
        await api.ended(run_id)
    with journal_of(house) as journal, journal.engine.begin() as connection:
        state = connection.execute(select(tables.runs.c.state)).scalar_one()
        assert '"join_s":120.0' in state
        connection.execute(update(tables.runs).values(state=state.replace('"join_s":120.0', '"join_s":null')))
    async with house.managed() as api:
        assert await api.get("/runs") == {"items": [], "total": 0}
        for path in ("", "/events", "/logs"):
            answer = await api.http.get(f"/api/v1/runs/{run_id}{path}")
            assert answer.headers["content-type"] == "application/problem+json"
            assert "cannot be read: spec.limits.join_s" in answer.json()["detail"]
        assert await api.start(house.task_id) != run_id


async def test_a_start_that_no_message_can_carry_is_the_reason_of_its_client(house: House) -> None:
    config = {f"key-{number}": "x" * 4000 for number in range(20)}
    spec = RunSpec(run_id="run-1", task_id=house.task_id, num_rounds=1, min_clients=1, run_config=config)
    (house.folder / "state").mkdir()
    with journal_of(house) as journal:
        task = Tasks(house.tasks_file)[house.task_id]
        journal.add_run(JournaledRun(run=Run(spec=spec, created_at=time.time()), secret=b"s" * 32, task=task))
    async with house.managed() as api, house.device(A):
        run = await api.ended("run-1")
    assert "start trigger cannot be sent" in run["clients"][A]["reason"]
    assert run["clients"][A]["attempt"] == 1


async def test_a_launch_that_never_happened_is_done_again_only_when_the_one_before_it_has_ended(house: House) -> None:
    """The manager died while the launch waited for the end of the earlier one."""
    async with house.device(A), house.device(B):
        async with house.managed(ends_servers=False) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
        first = house.server()
        with journal_of(house) as journal:
            (run,) = (each.run for each in journal.open_runs())
            journal.write(Batch(runs={run_id: (run, apply(run, ServerLaunched(2), time.time()))}))
        async with house.managed() as api:
            await api.run_when(run_id, lambda run: run["launch"] == 2 and run["status"] == "running")
            assert house.server().pid != first.pid


async def test_a_server_whose_process_id_was_not_written_down_is_found_again(house: House) -> None:
    """The manager died between starting the process and writing its id down."""
    async with house.device(A) as a, house.device(B):
        async with house.managed(ends_servers=False) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
        with journal_of(house) as journal, journal.engine.begin() as connection:
            connection.execute(update(tables.launches).values(pid=None, process_key=None))
        async with house.managed() as api:
            await api.training(run_id)
            house.server().kill()
            run = await api.run_when(run_id, lambda run: run["launch"] == 2 and run["status"] == "running")
            assert run["outcome"] is None
            await until(lambda: _said(len(a.starts) == 2), "the second aim")


@pytest.mark.long
async def test_of_two_managers_that_share_a_broker_but_no_database_the_older_one_leaves(house: House) -> None:
    said: list[str] = []
    async with house.managed(state_dir=house.folder / "newer"):
        pass
    ready, older = asyncio.Event(), house.settings(state_dir=house.folder / "older")
    life = asyncio.create_task(
        run_manager(older, bundle_server=BUNDLE_SERVER, print_line=said.append, on_ready=lambda url: ready.set())
    )
    async with asyncio.timeout(PATIENCE_S):
        await ready.wait()
        async with Connection(house.broker.url, subscriptions=[str(topics.manager_status())]) as reader:
            await final_status(reader, ManagerCondition.LEADING)
        async with house.managed(state_dir=house.folder / "newer"):
            assert await life == ExitCode.CONFLICT
    assert "a newer process" in said[-1]


async def test_a_journal_that_cannot_be_written_ends_the_manager_with_what_is_wrong(house: House) -> None:
    said: list[str] = []
    settings = house.settings(database_url="sqlite:////proc/no-such-folder/manager.db")
    assert await run_manager(settings, bundle_server=BUNDLE_SERVER, print_line=said.append) == ExitCode.UNAVAILABLE
    assert "unable to open database file" in said[-1]


def journal_of(house: House) -> Journal:
    return Journal(house.database_url(house.folder / "state"))


async def final_status(reader: Connection, status: ManagerCondition, *, term: int = 1) -> ManagerStatus:
    async with asyncio.timeout(PATIENCE_S):
        async for event in reader.events():
            word = event.message if isinstance(event, Received) else None
            if isinstance(word, ManagerStatus) and word.status is status and word.term >= term:
                return word
    raise AssertionError("events end only with the connection")


async def _said(answer: bool) -> bool:
    return answer
