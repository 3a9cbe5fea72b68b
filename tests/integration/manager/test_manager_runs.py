"""A manager on a real broker with a scripted FL server: the usual way of a run, and the ways it goes wrong."""

import os
import signal

import psutil
import pytest
from manager_parts import A, B, C, House, launched_while_the_first_is_stuck, until

from fedops_mqtt.line.access import check_token
from fedops_mqtt.protocol import Outcome


async def test_a_run_launches_its_server_fires_its_clients_and_ends_completed(house: House) -> None:
    async with house.managed() as api, house.device(A) as a, house.device(B) as b:
        run_id = await api.start(house.task_id)
        run = await api.training(run_id)
        assert run["status"] == "running"
        assert 0 < run["trigger_to_training_ms"]["p50"] <= run["trigger_to_training_ms"]["max"]
        house.command_server("finish", "all rounds done")
        a.finishes()
        b.finishes()
        run = await api.ended(run_id)
        assert (run["outcome"], run["reason"], run["metrics"]) == ("completed", "all rounds done", {"accuracy": 0.5})
        run = await api.run_when(run_id, lambda run: {c["status"] for c in run["clients"].values()} == {"finished"})
        rounds = (await api.get(f"/runs/{run_id}/rounds"))["items"]
        assert [(row["round"], row["metrics"]) for row in rounds] == [(1, {"accuracy": 0.5})]
        assert [each.attempt for each in a.starts + b.starts] == [1, 1]


async def test_the_trigger_carries_what_the_client_needs_and_a_token_of_its_own(house: House) -> None:
    async with house.managed() as api, house.device(A) as a, house.device(B) as b:
        run_id = await api.start(house.task_id)
        run = await api.run_when(run_id, lambda run: len(run["clients"]) == 2 and a.starts and b.starts)
        start = a.starts[0]
        term = (await api.get("/health"))["term"]
        said = (start.run_id, start.launch, start.term, start.instance, start.server_ip, start.num_clients)
        assert said == (run_id, 1, term, a.client.identity.instance, run["server_ip"], 2)
        assert start.gl_model == 4
        secret = bytes.fromhex((house.folder / "state/manager/secrets" / run_id).read_text())
        assert check_token(start.token, run_secret=secret, run_id=run_id, client_mac=A)
        assert start.token != b.starts[0].token


async def test_the_run_secret_is_in_no_ones_reach(house: House) -> None:
    async with house.managed() as api, house.device(A), house.device(B):
        run_id = await api.start(house.task_id)
        await api.run_when(run_id, lambda run: run["status"] == "running")
        path = house.folder / "state/manager/secrets" / run_id
        assert path.stat().st_mode & 0o777 == 0o600
        secret = path.read_text()
        assert secret not in str(await api.get("/runs")) + str(await api.get(f"/runs/{run_id}/events"))
        server = house.server()
        assert secret not in " ".join(server.cmdline())
        assert secret not in str(server.environ())


async def stop_reason(house: House) -> str | None:
    """What the first launch was told of its run before it was ended."""
    (file,) = list((house.folder / "state").rglob("server-1.stop-reason")) or [None]
    return file.read_text().partition("\n")[0] if file is not None else None


async def test_a_second_run_of_the_same_task_is_refused_while_one_is_active_and_possible_afterwards(
    house: House,
) -> None:
    async with house.managed() as api, house.device(A) as a, house.device(B) as b:
        first = await api.start(house.task_id)
        answer = await api.http.post("/api/v1/runs", json={"task_id": house.task_id})
        assert answer.status_code == 409
        assert answer.headers["content-type"] == "application/problem+json"
        assert first in answer.json()["detail"]
        await api.training(first)
        house.command_server("finish")
        a.finishes()
        b.finishes()
        await api.ended(first)
        house.take_back("finish")
        second = await api.start(house.task_id)
        await api.run_when(second, lambda run: len(a.starts) == 2 and len(b.starts) == 2)
        assert {run["run_id"] for run in (await api.get("/runs"))["items"]} == {first, second}


async def test_a_stopped_run_stops_its_clients_and_ends_its_server(house: House) -> None:
    async with house.managed() as api, house.device(A) as a, house.device(B):
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        server = house.server()
        answer = await api.http.post(f"/api/v1/runs/{run_id}/stop", json={"reason": "seen enough"})
        assert answer.status_code == 202
        run = await api.ended(run_id)
        assert (run["outcome"], run["reason"]) == ("stopped", "seen enough")
        run = await api.run_when(run_id, lambda run: {c["status"] for c in run["clients"].values()} == {"stopped"})
        assert (a.stops[0].run_id, a.stops[0].attempt) == (run_id, 1)
        await until(lambda: _is_gone(server), "the server's end")


async def test_a_server_that_dies_is_launched_again_and_its_clients_are_aimed_at_the_new_one(house: House) -> None:
    async with house.managed() as api, house.device(A) as a, house.device(B):
        run_id = await api.start(house.task_id)
        before = await api.training(run_id)
        os.kill(house.server().pid, signal.SIGKILL)
        run = await api.run_when(run_id, lambda run: run["launch"] == 2 and run["status"] == "running")
        assert run["server_ip"] != before["server_ip"]
        await until(_is(lambda: len(a.starts) == 2), "the second aim")
        assert [(each.attempt, each.launch) for each in a.starts] == [(1, 1), (1, 2)]
        exits = await api.events(run_id, "ServerExited")
        assert "SIGKILL" in exits[0]["detail"]["reason"]


async def test_a_server_that_cannot_run_fails_the_run_with_its_last_output(house: House) -> None:
    house.commands.mkdir(exist_ok=True)
    house.command_server("crash")
    house.write_tasks("min_clients = 1", limits="max_launches = 1")
    async with house.managed() as api:
        run = await api.ended(await api.start(house.task_id))
        assert run["outcome"] == "failed"
        assert "exited with status 3; last lines of its log: Traceback: it crashed on purpose" in run["reason"]


@pytest.mark.long
async def test_a_launch_that_waits_for_the_end_of_the_one_before_it_is_not_late(house: House) -> None:
    house.write_tasks("min_clients = 2", limits="server_start_s = 20")
    async with house.managed(server_stop_grace_s=300) as api, house.device(A), house.device(B):
        await launched_while_the_first_is_stuck(house, api, lambda: house.server().kill(), start_s=20)


async def test_a_command_that_does_not_exist_fails_the_run_and_names_it(house: House) -> None:
    house.write_tasks('command = ["/no/such/program"]', limits="max_launches = 1")
    async with house.managed() as api:
        run = await api.ended(await api.start(house.task_id))
        assert run["reason"] == (
            "FL server ended 1 times: FL server cannot be started: No such file or directory: /no/such/program"
        )


@pytest.mark.long
async def test_a_server_that_is_out_on_the_bus_and_whose_line_does_not_answer_is_replaced(house: House) -> None:
    async with house.managed() as api, house.device(A), house.device(B):
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        frozen = house.server()
        frozen.suspend()
        try:
            await house.broker.restart()
            run = await api.run_when(run_id, lambda run: run["launch"] == 2 and run["status"] == "running")
        finally:
            if frozen.is_running():
                frozen.resume()
        assert run["outcome"] is None
        assert await stop_reason(house) == "replaced"


async def test_a_broker_restart_ends_no_run(house: House) -> None:
    async with house.managed() as api, house.device(A) as a, house.device(B) as b:
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        await house.broker.restart()
        house.command_server("finish", "all rounds done")
        a.finishes()
        b.finishes()
        run = await api.ended(run_id)
        assert (run["outcome"], run["launch"]) == ("completed", 1)
        assert [each.attempt for each in a.starts] == [1]


async def test_a_failed_training_ends_a_run_that_needs_it_and_the_reason_names_the_client(house: House) -> None:
    async with house.managed() as api, house.device(A) as a, house.device(B):
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        a.finishes(Outcome.FAILED, "Traceback\nValueError: bad data")
        run = await api.ended(run_id)
        assert (run["outcome"], run["reason"]) == (
            "failed",
            f"1 of at least 2 clients; missing: {A} (failed: ValueError: bad data)",
        )
        assert await until(lambda: stop_reason(house), "the word to the server") == "failed"


async def test_a_client_that_does_not_answer_is_not_waited_for_for_ever(house: House) -> None:
    house.write_tasks("min_clients = 2", limits="trigger_answer_s = 0.4\ntrigger_retry_s = 0.2")
    async with house.managed() as api, house.device(A), house.device(B, ignores_triggers=True):
        run = await api.ended(await api.start(house.task_id))
        assert run["outcome"] == "failed"
        assert f"{B} (failed: after 3 attempts: no answer to its trigger)" in run["reason"]


async def test_a_run_that_needs_more_clients_than_there_are_reports_it_at_once_and_as_they_come(house: House) -> None:
    async with house.managed() as api:
        run_id = await api.start(house.task_id, min_clients=2)
        await api.run_when(run_id, lambda run: "0 idle, 2 needed" in (run["reason"] or ""))
        async with house.device(A):
            await api.run_when(run_id, lambda run: "1 idle, 2 needed" in (run["reason"] or ""))
            async with house.device(B):
                assert (await api.training(run_id))["reason"] is None


async def test_a_run_for_named_clients_leaves_the_others_alone(house: House) -> None:
    async with house.managed() as api, house.device(A) as a, house.device(B) as b, house.device(C) as c:
        run_id = await api.start(house.task_id, clients=[A.upper().replace(":", "-"), C])
        run = await api.run_when(run_id, lambda run: len(run["clients"]) == 2 and a.starts and c.starts)
        assert set(run["clients"]) == {A, C}
        assert b.starts == []


async def _is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def _is(ask):  # type: ignore[no-untyped-def]
    async def answer() -> bool:
        return bool(ask())

    return answer
