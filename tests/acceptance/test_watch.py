"""`watch` and the verbs that ask the manager, through a pipe and at a terminal, and what an idle daemon weighs."""

import asyncio
import json
import signal

import psutil
import pytest
from terminals import at_a_terminal
from yard import TIMEOUT_S, Site

from fedops_mqtt.manager.api.models import ClientRecord
from fedops_mqtt.protocol import ClientCondition
from fedops_mqtt.runtime.systemd import ExitCode

MAC = "02:00:00:00:01:01"
MAX_IDLE_MB = 55
"""MB of 2**20 bytes, as all memory figures of the project."""


@pytest.mark.long
async def test_watch_needs_no_manager_and_prints_a_line_a_change(site: Site) -> None:
    watch = await site.yard.start("watch", "--task-id", site.task_id, "--broker", site.broker)
    await watch.until_printed("^bus status=connected")
    client = await site.start_client(MAC, client_name="kitchen")
    await watch.until_printed(rf"^client .*client_mac={MAC} client_name=kitchen presence=online status=online")
    client.process.kill()
    await watch.until_printed(rf"^client .*client_mac={MAC} .*presence=out status=client-out reason=lost")
    assert "\x1b" not in watch.stdout


@pytest.mark.long
async def test_watch_once_prints_what_is_known_as_json_lines(site: Site) -> None:
    await site.start_client(MAC)
    await site.observer.until_client(MAC, ClientCondition.ONLINE)
    seen = await site.yard.run("watch", "--once", "--json", "--task-id", site.task_id, "--broker", site.broker)
    records = [json.loads(line) for line in seen.stdout.splitlines()]
    assert [(record["kind"], record["client_mac"], record["status"]) for record in records] == [
        ("client", MAC, "online")
    ]
    assert records[0].keys() == {"kind", "metrics", *ClientRecord.model_fields} - {"since", "heard_at"}


async def test_watch_at_a_terminal_draws_a_live_table_and_ctrl_c_leaves_it(site: Site) -> None:
    await site.start_client(MAC, client_name="kitchen")
    await site.observer.until_client(MAC, ClientCondition.ONLINE)
    async with at_a_terminal("watch", "--broker", site.broker) as terminal:
        await terminal.until_shown("kitchen", "no runs yet", "\x1b[")
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.process.wait() == ExitCode.OK


@pytest.mark.long
async def test_clients_and_runs_are_tables_in_a_pipe_and_json_lines_on_demand(site: Site) -> None:
    await site.start_client(MAC, client_name="kitchen")
    await site.observer.until_client(MAC, ClientCondition.ONLINE)
    await site.start_manager()
    asking = ("--manager", site.manager_url)

    async with asyncio.timeout(TIMEOUT_S):
        while len(lines := (await site.yard.run("clients", *asking)).stdout.splitlines()) < 2:
            continue  # the manager is still reading what the broker retains
    head, row = lines
    assert head.split()[:3] == ["client_mac", "client_name", "task_id"]
    assert row.split()[:3] == [MAC, "kitchen", site.task_id]
    (client,) = (json.loads(line) for line in (await site.yard.run("clients", "--json", *asking)).stdout.splitlines())
    assert client["client_mac"] == MAC
    assert (await site.yard.run("runs", "--json", *asking)).stdout == ""

    refused = await site.yard.run("start", "no-such-task", *asking)
    assert refused.process.returncode == ExitCode.FAILED
    assert "no-such-task" in refused.stderr
    unknown = await site.yard.run("stop", "no-such-run", *asking)
    assert unknown.process.returncode == ExitCode.FAILED


@pytest.mark.long
async def test_a_client_that_will_not_come_back_can_be_forgotten(site: Site) -> None:
    client = await site.start_client(MAC)
    await site.observer.until_client(MAC, ClientCondition.ONLINE)
    await site.start_manager()
    asking = ("--manager", site.manager_url)
    async with asyncio.timeout(TIMEOUT_S):
        while MAC not in (await site.yard.run("clients", "--json", *asking)).stdout:
            continue  # the manager is still reading what the broker retains
    here = await site.yard.run("clients", "--forget", MAC, *asking)
    assert here.process.returncode == ExitCode.FAILED
    assert "stop its daemon first" in here.stderr
    await client.end()
    await site.observer.until_client(MAC, ClientCondition.CLIENT_OUT)
    async with asyncio.timeout(TIMEOUT_S):
        while (await site.yard.run("clients", "--forget", MAC, *asking)).process.returncode != ExitCode.OK:
            continue  # the manager is still reading that it has left
    await site.observer.until(lambda: site.observer.client(MAC) is None)


@pytest.mark.long
async def test_an_idle_installed_daemon_is_small(site: Site) -> None:
    client = await site.start_client(MAC, http="127.0.0.1:0")
    await site.observer.until_client(MAC, ClientCondition.ONLINE)
    process = psutil.Process(client.process.pid)
    resident_mb = process.memory_info().rss / 2**20
    print(f"fedops-mqtt client, idle, HTTP shim on: {resident_mb:.1f} MB resident (limit {MAX_IDLE_MB} MB)")
    mapped = " ".join(each.path for each in process.memory_maps())
    assert "numpy" not in mapped
    assert "grpc" not in mapped
    assert resident_mb <= MAX_IDLE_MB
