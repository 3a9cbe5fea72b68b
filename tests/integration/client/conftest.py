"""FL servers, jobs, daemons and an operator for tests of the client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from client_testbed import HERE, PATIENCE_S, SECRET, MakeJob, Operator, RunDaemon, ServeFl, fl_server

from fedops_mqtt.bus import Connection, Mosquitto
from fedops_mqtt.client.app import FedOpsAttachment
from fedops_mqtt.core.client import Identity
from fedops_mqtt.device.daemon import Daemon
from fedops_mqtt.line.access import make_token
from fedops_mqtt.protocol import (
    Channel,
    RunStart,
    filter_for,
)
from fedops_mqtt.runtime.settings import ClientSettings
from fedops_mqtt.training.pipe import Job


@pytest.fixture
async def serve_fl() -> AsyncIterator[ServeFl]:
    """FL servers that end with the test."""
    async with AsyncExitStack() as stack:

        async def serve(*arguments: str) -> str:
            return await stack.enter_async_context(fl_server(*arguments))

        yield serve


@pytest.fixture
def make_job(tmp_path: Path, mac: str) -> MakeJob:
    """Jobs for a client of this test."""

    def make(**changes: object) -> Job:
        start: dict[str, object] = {
            "run_id": "r1",
            "attempt": 1,
            "launch": 1,
            "server_ip": "127.0.0.1:1",
            "transport": "line",
        }
        start["token"] = make_token(SECRET, str(changes.get("run_id", "r1")), mac)
        start |= {
            name: changes.pop(name)
            for name in changes.keys() & (RunStart.model_fields.keys() - Job.model_fields.keys())
        }
        fields = {
            "app": "fl_apps:counting",
            "import_paths": (str(HERE),),
            "identity": Identity(task_id="t", client_mac=mac, client_name="pi", instance="i"),
            "start": RunStart.model_validate(start),
            "state_folder": tmp_path,
            "join_s": PATIENCE_S,
            "rejoin_s": PATIENCE_S,
            "partition_id": 3,
            "num_partitions": 5,
            "run_config": {"batch_size": 32},
        }
        return Job.model_validate(fields | changes)

    return make


@pytest.fixture
async def operator(broker: Mosquitto, task_id: str, mac: str) -> AsyncIterator[Operator]:
    """The operator of this test's client."""
    filters = [filter_for(channel, task_id) for channel in (Channel.CLIENT_STATUS, Channel.CLIENT_METRICS)]
    async with Connection(broker.url, subscriptions=filters) as bus:
        await bus.wait_first_try()
        yield Operator(bus, task_id, mac)


@pytest.fixture
async def run_daemon(broker: Mosquitto, task_id: str, mac: str, tmp_path: Path) -> AsyncIterator[RunDaemon]:
    """Daemons that are told to leave at the end of the test."""
    daemons: list[Daemon] = []
    async with asyncio.TaskGroup() as group:

        async def run(**settings: object) -> Daemon:
            fields = {"broker": broker.url, "task_id": task_id, "mac": mac, "app": "fl_apps:counting"}
            fields |= {"state_dir": tmp_path, "partition_id": 3, "num_partitions": 5, "join_limit_s": PATIENCE_S}
            read = ClientSettings.model_validate(fields | settings)
            daemon = Daemon(
                read,
                attachment=FedOpsAttachment(read),
                import_paths=(str(HERE),),
                run_config={"batch_size": 32},
            )
            group.create_task(daemon.run(), name="daemon")
            daemons.append(daemon)
            return daemon

        yield run
        for daemon in daemons:
            daemon.leave()
