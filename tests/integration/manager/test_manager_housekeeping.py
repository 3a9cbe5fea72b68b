"""What a manager does beside its runs: adopting servers, forgetting clients, archiving runs, stopping late clients."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from manager_parts import HERE, PATIENCE_S, A, B, House, until

from fedops_mqtt.bus import Cleared, Connected, Connection, Received
from fedops_mqtt.protocol import RunCondition, RunStatus, topics
from fedops_mqtt.runtime.settings import inherited_environment


@asynccontextmanager
async def server_by_hand(house: House, *, task_id: str | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    """An FL server that nobody launched for us."""
    said = {"FEDOPS_MQTT_BROKER": house.broker.url, "FEDOPS_MQTT_TASK_ID": task_id or house.task_id}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "scripted_server.py"), str(house.commands), env={**inherited_environment(), **said}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def reading(house: House, topic: str) -> AsyncIterator[Connection]:
    async with Connection(house.broker.url, subscriptions=[topic]) as reader:
        async with asyncio.timeout(PATIENCE_S):
            async for event in reader.events():
                if isinstance(event, Connected):
                    break
        yield reader


async def test_a_server_started_by_hand_is_adopted_where_its_task_allows_it(house: House) -> None:
    house.write_tasks("adopt = true", "min_clients = 1")
    async with house.managed() as api, house.device(A) as a, server_by_hand(house):
        runs = await until(lambda: runs_of(api), "the adopted run")
        run = await api.training(runs[0]["run_id"], 1)
        assert (run["is_adopted"], run["launch"]) == (True, 0)
        assert (a.starts[0].token, a.starts[0].server_ip) == (None, run["server_ip"])
        house.command_server("finish", "done")
        a.finishes()
        assert (await api.ended(run["run_id"]))["outcome"] == "completed"
        answer = await api.http.post("/api/v1/runs", json={"task_id": house.task_id})
        assert answer.status_code == 409
        assert "begin when its server announces itself" in answer.json()["detail"]


async def test_the_status_of_a_run_is_repeated_for_new_subscribers_while_nothing_changes(house: House) -> None:
    """A broker that forgot it, or shows an old one, is mended by the next heartbeat."""
    async with house.managed(heartbeat_s=0.3) as api, house.device(A), house.device(B):
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        async with reading(house, str(topics.run_status(house.task_id, run_id))) as reader:
            said_of_run = [
                await next_matching(reader, lambda message: isinstance(message, RunStatus)) for _ in range(4)
            ]
    stamps = [(each.epoch, each.seq) for each in said_of_run]
    assert stamps == sorted(set(stamps))
    changing = {"at", "seq"}
    assert said_of_run[-1].model_dump(exclude=changing) == said_of_run[-2].model_dump(exclude=changing)


async def test_a_server_of_a_task_without_adoption_is_left_alone(house: House) -> None:
    other = f"{house.task_id}-other"
    with house.tasks_file.open("a") as file:
        file.write(f"\n[tasks.{other}]\nadopt = true\n")
    async with house.managed() as api, house.device(A) as a, server_by_hand(house):
        async with reading(house, str(topics.server_status(house.task_id))) as reader:
            await next_matching(reader, lambda message: getattr(message, "server_ip", None))
        async with server_by_hand(house, task_id=other):  # the manager reads of it after the first one
            adopted = await until(lambda: runs_of(api), "the adopted run")
        assert [run["task_id"] for run in adopted] == [other]
        assert a.starts == []


@pytest.mark.long
async def test_an_adopted_server_that_is_started_anew_is_a_new_run_and_the_old_one_fails(house: House) -> None:
    house.write_tasks("adopt = true", "min_clients = 1")
    async with house.managed() as api, house.device(A):
        async with server_by_hand(house):
            first = (await until(lambda: runs_of(api), "the adopted run"))[0]["run_id"]
            await api.training(first, 1)
        async with server_by_hand(house):
            run = await api.ended(first)
            assert run["outcome"] == "failed"
            assert "started anew" in run["reason"] or "line does not answer" in run["reason"]
            await until(lambda: runs_of(api, 2), "the second run")


async def test_a_client_that_is_away_can_be_forgotten_and_one_that_is_here_cannot(house: House) -> None:
    topic = topics.client_status(house.task_id, A)
    async with house.managed() as api:
        async with house.device(A):
            await until(lambda: is_listed(api, A), "the client")
            answer = await api.http.delete(f"/api/v1/clients/{A}")
            assert answer.status_code == 409
            assert "stop its daemon first" in answer.json()["detail"]
            assert (await api.http.delete(f"/api/v1/clients/{A}?force=true")).status_code == 200
            await until(lambda: is_listed(api, A), "the living client's next word")
        async with reading(house, str(topic)) as reader:
            await until(lambda: forgets(api, A), "the client's departure")
            await next_matching(reader, lambda message: message is None)
        assert (await api.get("/clients"))["total"] == 0
        assert (await api.http.delete(f"/api/v1/clients/{A}")).status_code == 404


async def test_a_run_is_retained_while_it_is_open_and_cleared_when_it_is_archived(house: House) -> None:
    everything = f"fedops/v1/{house.task_id}/runs/+"
    async with house.device(A) as a, house.device(B) as b, reading(house, everything) as reader:
        async with house.managed() as api:
            run_id = await api.start(house.task_id)
            status = await next_matching(
                reader, lambda message: getattr(message, "status", None) is RunCondition.RUNNING
            )
            assert isinstance(status, RunStatus)
            assert (status.run_id, status.min_clients, status.launch) == (run_id, 2, 1)
            assert status.term == (await api.get("/health"))["term"]
            await api.training(run_id)
            house.command_server("finish")
            a.finishes()
            b.finishes()
            last = await next_matching(reader, lambda message: getattr(message, "outcome", None) is not None)
            assert isinstance(last, RunStatus)
            assert set(last.clients) == {A, B}
        async with house.managed(archive_after_s=0.01) as api:
            await next_matching(reader, lambda message: message is None)
            assert (await api.run(run_id))["outcome"] == "completed"
            secret = house.folder / "state/manager/secrets" / run_id
            await until(lambda: is_true(not secret.exists()), "the secret's end")


async def test_a_cleared_run_is_published_again(house: House) -> None:
    async with house.managed() as api, reading(house, f"fedops/v1/{house.task_id}/runs/+") as reader:
        run_id = await api.start(house.task_id)
        await next_matching(reader, lambda message: message is not None)
        async with Connection(house.broker.url) as stranger:
            await stranger.wait_first_try()
            await stranger.publish(topics.run_status(house.task_id, run_id), None)
        await next_matching(reader, lambda message: message is None)
        await next_matching(reader, lambda message: message is not None)


async def test_a_retained_run_without_a_manager_is_cleared(house: House) -> None:
    async with house.managed() as api, house.device(A), house.device(B):
        run_id = await api.start(house.task_id)
        await api.training(run_id)
    topic = topics.run_status(house.task_id, run_id)
    async with reading(house, str(topic)) as reader:
        await next_matching(reader, lambda message: message is not None)
        async with house.managed(state_dir=house.folder / "lost-its-journal"):
            await next_matching(reader, lambda message: message is None)


async def test_a_client_that_trains_an_archived_run_gets_a_stop(house: House) -> None:
    async with house.device(A, is_stubborn=True) as a, house.device(B), house.managed(archive_after_s=0.01) as api:
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        await api.http.post(f"/api/v1/runs/{run_id}/stop")
        await api.ended(run_id)
        await until(lambda: is_true("the run is closed" in [each.reason for each in a.stops]), "the last stop")
        assert {(each.run_id, each.attempt) for each in a.stops} == {(run_id, 1)}


async def test_a_manager_without_a_broker_waits_and_leads_when_there_is_one(house: House) -> None:
    await house.broker.terminate()
    async with house.managed() as api:
        assert (await api.get("/health"))["status"] == "no-broker"
        answer = await api.http.delete(f"/api/v1/clients/{A}")
        assert answer.status_code == 404
        await house.broker.start()
        await until(lambda: has_status(api, "ok"), "the broker")


async def next_matching(reader: Connection, is_it):  # type: ignore[no-untyped-def]
    """Wait for a message (None: the topic was cleared) for which `is_it` holds."""
    async with asyncio.timeout(PATIENCE_S):
        async for event in reader.events():
            if not isinstance(event, Received | Cleared):
                continue
            message = event.message if isinstance(event, Received) else None
            if is_it(message):
                return message
    raise AssertionError("events end only with the connection")


async def runs_of(api, number: int = 1):  # type: ignore[no-untyped-def]
    runs = (await api.get("/runs"))["items"]
    return runs if len(runs) >= number else []


async def is_listed(api, mac: str) -> bool:  # type: ignore[no-untyped-def]
    return any(each["client_mac"] == mac for each in (await api.get("/clients"))["items"])


async def forgets(api, mac: str) -> bool:  # type: ignore[no-untyped-def]
    return bool((await api.http.delete(f"/api/v1/clients/{mac}")).status_code == 200)


async def has_status(api, status: str) -> bool:  # type: ignore[no-untyped-def]
    return bool((await api.get("/health"))["status"] == status)


async def is_true(answer: bool) -> bool:
    return answer
