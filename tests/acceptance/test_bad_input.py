"""Bad input from outside: each gives a clear message and harms nobody else."""

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from paho.mqtt import publish
from ports import free_port
from reader import observing
from yard import TIMEOUT_S, Installed, Site, Yard

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.protocol import ClientCondition, RunOutcome
from fedops_mqtt.runtime.systemd import ExitCode

MAC = "02:00:00:00:01:01"
LEVEL = MAC.replace(":", "-")
APP = "fedops_mqtt.demo:client_app"


def garbage(task_id: str) -> list[tuple[str, bytes]]:
    """Payloads that are no message, on every topic that a client or the manager reads."""
    client = f"fedops/v1/{task_id}/clients/{LEVEL}"
    trigger = {"run_id": "r", "attempt": 1, "launch": 1, "term": 1, "task_id": task_id, "server_ip": "127.0.0.1:1"}
    trigger |= {"client_mac": "02:00:00:00:09:09", "at": "2026-01-01T00:00:00Z"}
    status = {"instance": "x", "epoch": 1, "seq": 1, "at": "2026-01-01T00:00:00Z", "task_id": task_id}
    status |= {"client_mac": MAC, "status": "asleep"}
    return [
        (f"{client}/start", b"not JSON at all"),
        (f"{client}/start", b"\xff\xfe\x00"),
        (f"{client}/start", json.dumps(trigger).encode()),
        (f"{client}/start", json.dumps(trigger | {"client_mac": MAC, "attempt": "many"}).encode()),
        (f"{client}/start", b" " * (10 * 1024 * 1024)),
        (f"{client}/start", b" " * (1024 * 1024)),
        (f"{client}/stop", b"[]"),
        (f"{client}/status", json.dumps(status).encode()),
        (f"{client}/metrics", b"{}"),
        (f"fedops/v1/{task_id}/server/status", b"null"),
        (f"fedops/v1/{task_id}/runs/some-run", b"0"),
        ("fedops/v1/manager/status", b'"leading"'),
    ]


async def _throw(site: Site) -> None:
    port = int(site.broker.rpartition(":")[2])
    for topic, payload in garbage(site.task_id):
        try:
            await asyncio.to_thread(publish.single, topic, payload, qos=0, hostname="127.0.0.1", port=port)
        except OSError:
            continue  # the broker cuts whoever sends more than it takes


@pytest.mark.long
async def test_invalid_payloads_on_every_topic_disturb_no_run(site: Site) -> None:
    clients = await site.start_clients(2, "steered:app")
    manager = await site.start_manager(module="line_program")
    await _throw(site)
    run_id = await site.start_run(num_rounds=3, min_clients=2)
    await site.observer.until_client(MAC, ClientCondition.TRAIN_STARTED)
    await _throw(site)
    run = await site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.COMPLETED
    for process in (manager, *clients.values()):
        assert process.process.returncode is None
        assert "Traceback" not in process.stderr
    await clients[MAC].until_printed("not JSON")


@pytest.mark.long
async def test_a_daemon_waits_for_an_unreachable_broker_and_logs_it_once(yard: Yard, task_id: str) -> None:
    port = free_port()
    url = f"mqtt://127.0.0.1:{port}"
    fast = {"backoff_initial_s": 0.1, "backoff_max_s": 0.2}
    client = await yard.start(
        "client", broker=url, task_id=task_id, app=APP, mac=MAC, state_dir=yard.folder / "c", **fast
    )
    said = await client.until_printed(rf"^.*no connection to the broker at {url}.*$")
    async with Mosquitto(port=port), observing(url, task_id) as observer:
        await observer.until_client(MAC, ClientCondition.ONLINE)
        assert client.stderr.count(said.group()) == 1
        assert client.stderr.count("no connection to the broker") == 1
        assert await client.end(signal.SIGTERM) == ExitCode.OK


@pytest.mark.long
async def test_a_wrong_password_is_reported_as_such(yard: Yard, task_id: str) -> None:
    async with Mosquitto(changes={"allow_anonymous": "false"}) as broker:
        known = {"broker": broker.url, "broker_user": "device", "broker_password": "correct-horse"}
        client = await yard.start("client", task_id=task_id, app=APP, mac=MAC, state_dir=yard.folder / "c", **known)
        await client.until_printed("user 'device' is refused")
        watch = await yard.run("watch", "--once", **known)
        assert watch.process.returncode == ExitCode.NO_PERMISSION
        assert "FEDOPS_MQTT_BROKER_PASSWORD" in watch.stderr
        for process in (client, watch):
            assert "correct-horse" not in process.stderr + process.stdout


@pytest.mark.parametrize(
    "task_id", ["a/b", *(pytest.param(each, marks=pytest.mark.long) for each in ("a+b", "#", "..", "x" * 65))]
)
async def test_a_task_id_that_is_none_is_refused_before_anything_starts(yard: Yard, task_id: str) -> None:
    client = await yard.run("client", "--task-id", task_id, "--app", APP, state_dir=yard.folder / "c")
    assert client.process.returncode == ExitCode.USAGE
    assert "--task-id" in client.stderr
    assert "1 to 64 of A-Z a-z 0-9" in client.stderr
    assert not (yard.folder / "c").exists()


@contextmanager
def _silent_server() -> Iterator[str]:
    """Something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken: list[socket.socket] = []

        def take() -> None:
            try:
                while True:
                    taken.append(listening.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()


@pytest.mark.long
async def test_a_server_that_never_answers_fails_the_training_in_time(site: Site) -> None:
    client = await site.start_client(MAC, http="127.0.0.1:0", join_limit_s=3)
    await site.observer.until_client(MAC, ClientCondition.ONLINE)
    with _silent_server() as server_ip:
        assert (await _post_start(client, server_ip)) == 200
        await site.observer.until_client(MAC, ClientCondition.TRAIN_STARTED)
        failed = await site.observer.until_client(MAC, ClientCondition.TRAIN_FAILED)
    assert server_ip in (failed.status.reason or "")
    assert client.process.returncode is None


async def _post_start(client: Installed, server_ip: str) -> int:
    shim = (await client.until_printed(r"HTTP shim listens address=(\S+)")).group(1)
    async with httpx.AsyncClient(base_url=f"http://{shim}", timeout=TIMEOUT_S, trust_env=False) as http:
        answer = await http.post("/start", json={"server_ip": server_ip, "client_mac": MAC})
        return answer.status_code
