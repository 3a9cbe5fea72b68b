"""What goes wrong with FedOps clients and servers is seen on the bus as what it is, and ends nothing else."""

import signal

import httpx
import pytest
from bridge_parts import MACS, NEW, Crossing, OldDevice
from ports import free_port
from yard import TIMEOUT_S

from fedops_mqtt.protocol import ClientCondition, MemberCondition, Outcome, RunOutcome

TRAINING = [MemberCondition.TRAINING] * 2


async def two_old_devices(crossing: Crossing, *flags_of_second: str) -> list[OldDevice]:
    """Start a manager for runs of two, a bridge that polls fast, and two FedOps clients that say who they are."""
    await crossing.start_manager(min_clients=2)
    ports = free_port(), free_port()
    await crossing.start_bridge(*(f"http://127.0.0.1:{port}" for port in ports))
    flags = ((), flags_of_second)
    devices = [
        await crossing.start_old(mac, *flags[index], managers=crossing.url, port=ports[index], says_who=True)
        for index, mac in enumerate(MACS[:2])
    ]
    for device in devices:
        await crossing.site.observer.until_client(device.mac, ClientCondition.ONLINE)
    return devices


@pytest.mark.long
async def test_one_failure_is_one_clients_failure(crossing: Crossing) -> None:
    await two_old_devices(crossing, "--raises")
    run_id = await crossing.site.start_run()
    failed = await crossing.site.observer.until_client(MACS[1], ClientCondition.TRAIN_FAILED)
    assert failed.status.last_run is not None
    assert failed.status.last_run.run_id == run_id
    assert not failed.is_out
    run = await crossing.site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.FAILED
    assert MACS[1] in (run.reason or "")
    assert run.clients[MACS[0]].status != MemberCondition.FAILED


@pytest.mark.long
async def test_a_killed_client_leaves_its_round_at_once_and_is_asked_again_when_it_is_back(crossing: Crossing) -> None:
    devices = await two_old_devices(crossing, "--holds")
    run_id = await crossing.site.start_run()
    await crossing.site.observer.until_run(run_id, lambda run: run.round == 1)
    await crossing.site.observer.until_run(
        run_id, lambda run: [each.status for each in run.clients.values()] == TRAINING
    )
    await devices[1].process.end(signal.SIGKILL)
    lost = await crossing.site.observer.until_run(
        run_id, lambda run: run.clients[MACS[1]].status == MemberCondition.LOST
    )
    assert lost.outcome is None
    out = await crossing.site.observer.until_client(MACS[1], ClientCondition.CLIENT_OUT)
    assert out.status.reason == "lost"

    port = int(devices[1].url.rpartition(":")[2])
    await crossing.start_old(MACS[1], managers=crossing.url, port=port, says_who=True)
    run = await crossing.site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.COMPLETED
    assert run.clients[MACS[1]].attempt > 1
    finished = await crossing.site.observer.until_client(MACS[1], ClientCondition.TRAIN_FINISHED)
    assert finished.status.last_run is not None
    assert (finished.status.last_run.run_id, finished.status.last_run.outcome) == (run_id, Outcome.FINISHED)


@pytest.mark.long
async def test_a_stopped_run_ends_an_old_client_too(crossing: Crossing) -> None:
    devices = await two_old_devices(crossing, "--holds")
    run_id = await crossing.site.start_run()
    await crossing.site.observer.until_client(MACS[1], ClientCondition.TRAIN_STARTED)
    await crossing.site.observer.until_run(run_id, lambda run: run.round == 1)
    await crossing.site.yard.run("stop", run_id, "--manager", crossing.site.manager_url)
    run = await crossing.site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.STOPPED
    stopped = await crossing.site.observer.until_client(MACS[1], ClientCondition.TRAIN_FAILED)
    assert stopped.status.last_run is not None
    assert stopped.status.last_run.outcome == Outcome.STOPPED
    async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S) as http:
        await http.get(f"{devices[1].url}/release")
    await devices[0].process.end(signal.SIGINT)
    left = await crossing.site.observer.until_client(MACS[0], ClientCondition.CLIENT_OUT)
    assert left.status.reason == "shutdown"


@pytest.mark.long
async def test_a_device_that_moves_to_mqtt_is_left_to_itself(crossing: Crossing) -> None:
    port = free_port()
    bridge = await crossing.start_bridge(f"{NEW}=http://127.0.0.1:{port}")
    await crossing.start_old(MACS[0], managers=crossing.url, port=port)
    old = await crossing.site.observer.until_client(NEW, ClientCondition.ONLINE)
    await crossing.start_new(NEW)
    await bridge.until_printed("is on the bus by itself now")
    new = await crossing.site.observer.until_client(NEW, ClientCondition.ONLINE)
    await crossing.site.observer.until(
        lambda: (crossing.site.observer.client(NEW) or old).status.agent.get("via") is None
    )
    new = await crossing.site.observer.until_client(NEW, ClientCondition.ONLINE)
    assert new.status.instance != old.status.instance


@pytest.mark.long
async def test_a_fedops_server_that_is_killed_fails_its_run(crossing: Crossing) -> None:
    await crossing.start_manager(adopt=True)
    port, at = free_port(), free_port()
    await crossing.start_bridge(f"http://127.0.0.1:{port}", fedops_server=f":{at}")
    await crossing.start_old(MACS[0], "--holds", managers=crossing.url, port=port)
    await crossing.site.observer.until_client(MACS[0], ClientCondition.ONLINE)
    server = await crossing.start_server(port=at)
    await crossing.site.observer.until_client(MACS[0], ClientCondition.TRAIN_STARTED)
    await server.end(signal.SIGKILL)
    run = await crossing.site.observer.until_only_ended()
    assert (run.outcome, run.reason) == (RunOutcome.FAILED, "the FedOps server ended without a report")


async def test_a_server_with_a_faulty_bundle_affects_no_other_until_it_is_mended(
    crossing: Crossing,
) -> None:
    """It ended the bridge once, and each next one; so did a bundle with a password."""
    port, level = free_port(), f"server-{crossing.site.task_id}"
    bundle = crossing.site.yard.folder / "bundles" / level / "bundle.toml"
    bundle.parent.mkdir(parents=True)
    bundle.write_text("broker = [")
    ours = {"bundles": bundle.parent.parent, "server_start_limit_s": TIMEOUT_S}
    bridge = await crossing.start_bridge(f"http://127.0.0.1:{port}", **ours)
    await crossing.start_old(MACS[0], managers=crossing.url, port=port)
    await crossing.site.observer.until_client(MACS[0], ClientCondition.ONLINE)
    async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S) as http:
        update = f"{crossing.url}/FLSe/FLSeUpdate/{crossing.site.task_id}"
        (await http.put(update, json={"FLSeReady": True, "GL_Model_V": 4})).raise_for_status()
    await bridge.until_printed("cannot publish for a FedOps server")
    await bridge.end(signal.SIGKILL)
    await crossing.site.observer.until_client(MACS[0], ClientCondition.CLIENT_OUT)

    bundle.write_text(f'broker = "{crossing.site.broker}"\nbroker_ca_file = "missing.pem"\n')
    where = crossing.url.removeprefix("http://")
    again = await crossing.start_bridge(f"http://127.0.0.1:{port}", http=where, **ours)
    await again.until_printed("cannot publish for a FedOps server")
    await crossing.site.observer.until_client(MACS[0], ClientCondition.ONLINE)

    bundle.write_text(f'broker = "{crossing.site.broker}"\nbroker_user = "{level}"\nbroker_password = "s3cret"\n')
    server = await crossing.site.observer.until(lambda: crossing.site.observer.server)
    assert (server.status.gl_model, server.status.transport) == (4, "grpc")
    assert "s3cret" not in again.stderr
    assert await again.end() == 0


@pytest.mark.long
async def test_a_bridge_that_is_killed_finds_client_and_server_where_they_are(crossing: Crossing) -> None:
    await crossing.start_manager(adopt=True)
    port, at = free_port(), free_port()
    bridge = await crossing.start_bridge(f"http://127.0.0.1:{port}", fedops_server=f":{at}")
    old = await crossing.start_old(MACS[0], "--holds", managers=crossing.url, port=port)
    await crossing.site.observer.until_client(MACS[0], ClientCondition.ONLINE)
    await crossing.start_server(port=at)
    await crossing.site.observer.until_client(MACS[0], ClientCondition.TRAIN_STARTED)
    await bridge.end(signal.SIGKILL)
    await crossing.site.observer.until_client(MACS[0], ClientCondition.CLIENT_OUT)
    where = crossing.url.removeprefix("http://")
    await crossing.start_bridge(f"http://127.0.0.1:{port}", fedops_server=f":{at}", http=where)
    again = await crossing.site.observer.until_client(MACS[0], ClientCondition.TRAIN_STARTED)
    assert again.status.run is not None
    assert again.status.run.attempt == 2
    async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S) as http:
        await http.get(f"{old.url}/release")
    run = await crossing.site.observer.until_only_ended()
    assert (run.outcome, run.round) == (RunOutcome.COMPLETED, 2)
    finished = await crossing.site.observer.until_client(MACS[0], ClientCondition.TRAIN_FINISHED)
    assert finished.status.last_run is not None
    assert finished.status.last_run.run_id == run.run_id


async def test_no_caller_is_admitted_without_the_token_and_no_web_page_at_all(crossing: Crossing) -> None:
    port = free_port()
    await crossing.start_bridge(f"http://127.0.0.1:{port}", bridge_token="s3cret")
    async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S) as http:
        assert (await http.get(f"{crossing.url}/trainFin")).status_code == 401
        assert (await http.get(f"{crossing.url}/trainFin", auth=("x", "wrong"))).status_code == 401
        assert (await http.get(f"{crossing.url}/info/", auth=("x", "s3cret"))).json()["GL_Model_V"] == 0
        page = {"origin": "https://example.org"}
        assert (await http.get(f"{crossing.url}/info/", auth=("x", "s3cret"), headers=page)).status_code == 403
    beyond = await crossing.site.yard.run("bridge", "--http", "0.0.0.0:0")
    assert beyond.process.returncode == 78
    assert "FEDOPS_MQTT_BRIDGE_TOKEN" in beyond.stderr
