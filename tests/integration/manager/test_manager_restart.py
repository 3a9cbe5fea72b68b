"""A manager that is killed, restarted, doubled: journal, retained statuses and lease carry the runs over."""

import asyncio
import signal

import psutil
from manager_parts import A, B, House, api_at, hear, manager_process, until

from fedops_mqtt.bus import Connection, Received
from fedops_mqtt.protocol import ManagerCondition, ManagerStatus, topics


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
            house.tell_server("finish", "all rounds done")
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


async def test_a_run_that_ended_while_no_manager_was_there_is_known_with_its_outcome(house: House) -> None:
    async with house.device(A) as a, house.device(B) as b:
        async with manager_process(house) as first, api_at(first.url) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
            first.kill()
            await first.gone()
        server = house.server()
        house.tell_server("finish", "all rounds done")
        a.finishes()
        b.finishes()
        await asyncio.to_thread(psutil.wait_procs, [server], 20)
        async with manager_process(house) as second, api_at(second.url) as api:
            run = await api.ended(run_id)
            assert (run["outcome"], run["reason"], run["launch"]) == ("completed", "all rounds done", 1)
            assert {each["status"] for each in run["clients"].values()} == {"finished"}


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
            assert (a.starts[1].attempt, a.starts[1].launch, a.starts[1].term) == (1, 2, 2)


async def test_a_manager_that_is_told_to_end_says_goodbye_and_leaves_its_runs_alone(house: House) -> None:
    topic = topics.manager_status()
    async with house.device(A), house.device(B), Connection(house.broker.url, subscriptions=[str(topic)]) as reader:
        async with manager_process(house) as manager, api_at(manager.url) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
            manager.process.send_signal(signal.SIGTERM)
            assert await manager.gone() == 0
        assert (await last_word(reader, ManagerCondition.MANAGER_OUT)).reason == "shutdown"
        server = house.server()
        assert server.is_running()


async def test_a_second_manager_waits_says_so_and_takes_over_with_a_higher_term(house: House) -> None:
    topic = topics.manager_status()
    async with (
        house.device(A) as a,
        house.device(B) as b,
        Connection(house.broker.url, subscriptions=[str(topic)]) as bus,
    ):
        async with manager_process(house) as first, manager_process(house, waits=False) as second:
            waiting = await hear(second, "on standby")
            assert f"pid {first.process.pid}" in waiting
            async with api_at(first.url) as api:
                run_id = await api.start(house.task_id)
                await api.training(run_id)
            first.kill()
            await hear(second, "ready")
            async with api_at(second.url) as api:
                assert (await api.get("/health"))["term"] == 2
                house.tell_server("finish", "all rounds done")
                a.finishes()
                b.finishes()
                assert (await api.ended(run_id))["outcome"] == "completed"
        assert (await last_word(bus, ManagerCondition.LEADING, term=2)).term == 2
        assert len(a.starts) == 1


async def test_a_manager_that_waits_can_be_told_to_end(house: House) -> None:
    async with manager_process(house), manager_process(house, waits=False) as second:
        await hear(second, "on standby")
        second.process.send_signal(signal.SIGTERM)
        assert await second.gone() == 0


async def test_a_run_whose_server_could_not_be_started_goes_on_when_the_tasks_file_is_mended(house: House) -> None:
    async with house.device(A), house.device(B):
        house.write_tasks('command = ["/no/such/program"]', "min_clients = 2", limits="max_launches = 2")
        async with manager_process(house) as first, api_at(first.url) as api:
            run_id = await api.start(house.task_id)
            await until(lambda: api.events(run_id, "ServerLaunched"), "the launch")
            first.kill()
            await first.gone()
        house.write_tasks("min_clients = 2")
        async with manager_process(house) as second, api_at(second.url) as api:
            run = await api.training(run_id)
            assert run["launch"] == 2
            await api.http.post(f"/api/v1/runs/{run_id}/stop")
            await api.ended(run_id)


async def last_word(reader: Connection, status: ManagerCondition, *, term: int = 1) -> ManagerStatus:
    async with asyncio.timeout(20):
        async for event in reader.events():
            word = event.message if isinstance(event, Received) else None
            if isinstance(word, ManagerStatus) and word.status is status and word.term >= term:
                return word
    raise AssertionError("events end only with the connection")


async def _said(answer: bool) -> bool:
    return answer
