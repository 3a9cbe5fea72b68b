"""Runs over installed processes: trigger to finished, again, failing, by HTTP, past a manager that is killed."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from device_plan import DevicePlan
from fault_proxy import FaultProxy
from line_site import APP, PROGRAM, start_with_all
from safetensors.numpy import load_file
from yard import TIMEOUT_S, Installed, Site, eventually

from fedops_mqtt.demo.reaper import marked
from fedops_mqtt.protocol import ClientCondition, Outcome, RunOutcome, ServerCondition

MAC = "02:00:00:00:01:01"


@pytest.mark.long
async def test_presence_follows_birth_and_kill(site: Site) -> None:
    client = await site.start_client(MAC)
    born = await site.observer.until_client(MAC, ClientCondition.ONLINE)
    await client.end(signal.SIGKILL)
    dead = await site.observer.until_client(MAC, ClientCondition.CLIENT_OUT)
    assert dead.status.reason == "lost"
    assert dead.status.instance == born.status.instance
    await site.start_client(MAC)
    back = await site.observer.until_client(MAC, ClientCondition.ONLINE)
    assert back.status.instance != born.status.instance


@pytest.mark.long
async def test_a_trigger_leads_to_training_and_to_finished_and_then_again(site: Site) -> None:
    clients = await site.start_clients(2, APP)
    await site.start_manager(module=PROGRAM)
    instances = {mac: _instance(site, mac) for mac in clients}
    for version in (1, 2):
        run_id = await site.start_run(num_rounds=1, min_clients=2)
        for mac in clients:
            started = await site.observer.until_client(mac, ClientCondition.TRAIN_STARTED)
            assert started.status.run is not None
            assert started.status.run.run_id == run_id
        for mac in clients:
            finished = await site.observer.until_client(mac, ClientCondition.TRAIN_FINISHED)
            assert finished.status.last_run is not None
            assert (finished.status.last_run.run_id, finished.status.last_run.outcome) == (run_id, Outcome.FINISHED)
        run = await site.observer.until_ended(run_id)
        assert run.outcome == RunOutcome.COMPLETED
        assert run.model_path is not None
        assert run.model_path.endswith(f"_V{version}.safetensors")
    assert instances == {mac: _instance(site, mac) for mac in clients}


@pytest.mark.long
async def test_training_that_raises_is_reported_with_its_text_and_the_daemon_goes_on(site: Site) -> None:
    client = await site.start_client(MAC, "yard_apps:raising")
    await site.observer.until_client(MAC, ClientCondition.ONLINE)
    await site.start_manager()
    for _ in range(2):
        run_id = await site.start_run(num_rounds=1, min_clients=1)
        await site.observer.until_client(MAC, ClientCondition.TRAIN_STARTED)
        failed = await site.observer.until_client(MAC, ClientCondition.TRAIN_FAILED)
        assert "ValueError: the disk with the training data is gone" in (failed.status.reason or "")
        assert not failed.is_out
        run = await site.observer.until_ended(run_id)
        assert run.outcome == RunOutcome.FAILED
    assert client.process.returncode is None


@pytest.mark.long
@pytest.mark.parametrize("task_id", ["digits"])
async def test_a_start_by_http_gives_the_same_model_as_a_trigger(site: Site, tmp_path: Path) -> None:
    client = await site.start_client(MAC, http="127.0.0.1:0", partition_id=0, num_partitions=3)
    await site.observer.until_client(MAC, ClientCondition.ONLINE)
    shim = (await client.until_printed(r"HTTP shim listens address=(\S+)")).group(1)

    manager = await site.start_manager()
    by_trigger = await site.observer.until_ended(await site.start_run(num_rounds=5, min_clients=1))
    await manager.end()
    first = await site.observer.until_client(MAC, ClientCondition.TRAIN_FINISHED)

    await _serve_by_hand(site, tmp_path / "by-hand")
    await site.observer.until(lambda: _server_ready(site) is not None)
    server_ip = _server_ready(site)
    async with httpx.AsyncClient(base_url=f"http://{shim}", timeout=TIMEOUT_S, trust_env=False) as http:
        answer = await http.post("/start", json={"server_ip": server_ip, "client_mac": MAC})
        assert answer.status_code == 200
        assert answer.json()["FL_client_start"] is True
    await site.observer.until_client(MAC, ClientCondition.TRAIN_STARTED)
    second = await site.observer.until_client(MAC, ClientCondition.TRAIN_FINISHED)

    assert first.status.last_run is not None
    assert second.status.last_run is not None
    assert second.status.last_run.run_id != first.status.last_run.run_id
    by_http = await _model_in(tmp_path / "by-hand")
    assert by_trigger.model_path is not None
    for name, array in load_file(by_trigger.model_path).items():
        np.testing.assert_array_equal(array, by_http[name])


@pytest.mark.long
async def test_a_completed_run_stays_completed_when_its_servers_final_status_is_lost(site: Site) -> None:
    host, port = site.broker.removeprefix("mqtt://").split(":")
    async with FaultProxy(host, int(port)).running() as proxy:
        proxy.swallows = lambda packet: b'"reason":"all rounds done"' in packet
        await site.start_clients(2)
        await site.start_manager(more=f'env = {{ FEDOPS_MQTT_BROKER = "{proxy.url}" }}', max_launches=1)
        run_id = await site.start_run(num_rounds=2, min_clients=2)
        folder = site.yard.folder / "manager/manager/runs" / run_id
        await eventually((folder / "server-1.last-word.json").exists)
        (server,) = marked(run_id, "FEDOPS_MQTT_RUN_ID")
        server.kill()
        run = await site.observer.until_ended(run_id)
    assert (run.outcome, run.reason, run.launch, run.round) == (RunOutcome.COMPLETED, "all rounds done", 1, 2)
    assert run.model_path is not None
    assert await asyncio.to_thread(Path(run.model_path).exists)


async def test_a_manager_killed_during_a_run_finishes_it_after_its_restart(site: Site, device_plan: DevicePlan) -> None:
    clients = await site.start_clients(2, APP)
    manager = await site.start_manager(module=PROGRAM)
    run_id = await start_with_all(site, device_plan, clients, num_rounds=2, min_clients=2)
    server = (await site.observer.until_run(run_id, lambda run: run.server_ip is not None)).server_ip
    await manager.end(signal.SIGKILL)
    await site.observer.until(lambda: (view := site.observer.manager) is not None and view.is_out)
    await site.start_manager(module=PROGRAM)
    device_plan.write({})
    run = await site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.COMPLETED
    assert run.round == 2
    record = await site.ask(f"/runs/{run_id}")
    assert (record["launch"], record["server_ip"] or server) == (1, server)
    for mac in clients:
        finished = await site.observer.until_client(mac, ClientCondition.TRAIN_FINISHED)
        assert finished.status.last_run is not None
        assert finished.status.last_run.attempt == 1


@pytest.mark.long
async def test_stop_ends_a_run_and_its_clients_are_ready_for_another(site: Site) -> None:
    clients = await site.start_clients(2)
    await site.start_manager()
    run_id = await site.start_run(num_rounds=1000, min_clients=2)
    await site.observer.until_run(run_id, lambda run: run.round >= 1)
    stopped = await site.yard.run("stop", run_id, "--wait", "--json", "--manager", site.manager_url)
    assert json.loads(stopped.stdout)["outcome"] == "stopped"
    for mac in clients:
        await site.observer.until_client(mac, ClientCondition.TRAIN_FAILED)
    again = await site.yard.run(
        "start", site.task_id, "--rounds", "1", "--wait", "--json", "--manager", site.manager_url
    )
    assert again.process.returncode == 0, again.stderr
    assert json.loads(again.stdout)["outcome"] == "completed"


@pytest.mark.long
async def test_a_daemon_that_is_killed_takes_its_training_with_it(site: Site) -> None:
    client = await site.start_client(MAC, "yard_apps:flat_out")
    await site.observer.until_client(MAC, ClientCondition.ONLINE)
    await site.start_manager()
    await site.start_run(num_rounds=50, min_clients=1)
    await site.observer.until_client(MAC, ClientCondition.TRAIN_STARTED)
    training = await _children(client)
    await client.end(signal.SIGKILL)
    gone, alive = await asyncio.to_thread(psutil.wait_procs, training, TIMEOUT_S)
    assert gone
    assert not alive


def _instance(site: Site, mac: str) -> str:
    view = site.observer.client(mac)
    assert view is not None
    return view.status.instance


def _server_ready(site: Site) -> str | None:
    view = site.observer.server
    is_ready = view is not None and view.status.status == ServerCondition.READY and not view.is_out
    return view.status.server_ip if view is not None and is_ready else None


async def _serve_by_hand(site: Site, store: Path) -> Installed:
    return await site.yard.start(
        "-m",
        "fedops_mqtt.demo.server",
        command=sys.executable,
        broker=site.broker,
        task_id=site.task_id,
        join="open",
        min_clients=1,
        store=store,
        state_dir=site.yard.folder / "server",
    )


async def _model_in(store: Path) -> dict[str, np.ndarray]:
    found = await eventually(lambda: list(store.rglob("*.safetensors")))
    return load_file(found[0])


async def _children(client: Installed) -> list[psutil.Process]:
    return await eventually(lambda: psutil.Process(client.process.pid).children(recursive=True))
