"""FL servers as processes, and jobs for the training process."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from fedops_mqtt.bus import Connection, Mosquitto, Received
from fedops_mqtt.client.daemon import Daemon
from fedops_mqtt.client.pipe import Job
from fedops_mqtt.line.token import make_token
from fedops_mqtt.protocol import (
    Channel,
    ClientCondition,
    ClientMetrics,
    ClientStatus,
    StartTrigger,
    StopTrigger,
    filter_for,
    topics,
    utc_now,
)
from fedops_mqtt.settings import ClientSettings

HERE = Path(__file__).parent
SECRET = b"0123456789abcdef"


class ServeFl(Protocol):
    """Starts an FL server and returns its address."""

    async def __call__(self, *arguments: str) -> str: ...


@pytest.fixture
async def serve_fl() -> AsyncIterator[ServeFl]:
    """FL servers that end with the test."""
    async with AsyncExitStack() as stack:

        async def serve(*arguments: str) -> str:
            return await stack.enter_async_context(_fl_server(*arguments))

        yield serve


@asynccontextmanager
async def _fl_server(*arguments: str) -> AsyncIterator[str]:
    server = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "fl_server.py"), *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        async with asyncio.timeout(60):
            yield (await server.stdout.readline()).decode().strip()
    finally:
        if server.returncode is None:
            server.kill()
        await server.communicate()


MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path, mac: str) -> MakeJob:
    """Jobs for a client of this test."""

    def make(**changes: object) -> Job:
        fields = {
            "app": "fl_apps:counting",
            "import_paths": (str(HERE),),
            "task_id": "t",
            "client_mac": mac,
            "client_name": "pi",
            "instance": "i",
            "run_id": "r1",
            "attempt": 1,
            "launch": 1,
            "server_ip": "127.0.0.1:1",
            "transport": "line",
            "token": make_token(SECRET, str(changes.get("run_id", "r1")), mac),
            "gl_model": 0,
            "num_clients": 1,
            "is_local": False,
            "state_folder": tmp_path,
            "ca_file": None,
            "join_limit_s": 20,
            "rejoin_limit_s": 5,
            "partition_id": 3,
            "num_partitions": 5,
            "run_config": {"batch_size": 32},
            "wandb": None,
        }
        return Job.model_validate(fields | changes)

    return make


class Operator:
    """Somebody on the bus who watches one client and tells it things, as a manager does."""

    def __init__(self, bus: Connection, task_id: str, mac: str) -> None:
        self.bus = bus
        self.task_id = task_id
        self.mac = mac
        self.statuses: list[ClientStatus] = []
        self.metrics: list[ClientMetrics] = []

    async def until(self, is_it: Callable[[ClientStatus], bool], *, timeout_s: float = 40) -> ClientStatus:
        """Wait for a status."""
        async with asyncio.timeout(timeout_s):
            async for event in self.bus.events():
                if isinstance(event, Received) and isinstance(event.message, ClientMetrics):
                    self.metrics.append(event.message)
                if isinstance(event, Received) and isinstance(event.message, ClientStatus):
                    self.statuses.append(event.message)
                    if is_it(event.message):
                        return event.message
        raise AssertionError

    async def until_condition(self, condition: ClientCondition, **facts: object) -> ClientStatus:
        """Wait for a status of the five."""
        return await self.until(
            lambda status: (
                status.status is condition and all(getattr(status, name) == value for name, value in facts.items())
            )
        )

    async def trigger(self, server_ip: str, *, run_id: str = "r1", **changes: object) -> None:
        """Fire a start trigger."""
        fields = {"run_id": run_id, "attempt": 1, "launch": 1, "term": 1, "task_id": self.task_id}
        fields |= {"client_mac": self.mac, "server_ip": server_ip, "token": make_token(SECRET, run_id, self.mac)}
        trigger = StartTrigger.model_validate(fields | {"at": utc_now()} | changes)
        await self.bus.publish(topics.client_start(self.task_id, self.mac), trigger)

    async def stop(self, run_id: str = "r1", *, attempt: int = 1, reason: str | None = None) -> None:
        """Fire a stop trigger."""
        stop = StopTrigger(
            run_id=run_id,
            attempt=attempt,
            term=1,
            task_id=self.task_id,
            client_mac=self.mac,
            reason=reason,
            at=utc_now(),
        )
        await self.bus.publish(topics.client_stop(self.task_id, self.mac), stop)


@pytest.fixture
async def operator(broker: Mosquitto, task_id: str, mac: str) -> AsyncIterator[Operator]:
    """The operator of this test's client."""
    filters = [filter_for(channel, task_id) for channel in (Channel.CLIENT_STATUS, Channel.CLIENT_METRICS)]
    async with Connection(broker.url, subscriptions=filters) as bus:
        await bus.wait_first_try()
        yield Operator(bus, task_id, mac)


class RunDaemon(Protocol):
    """Starts a daemon of this test's client in the test's own loop."""

    async def __call__(self, **settings: object) -> Daemon: ...


@pytest.fixture
async def run_daemon(broker: Mosquitto, task_id: str, mac: str, tmp_path: Path) -> AsyncIterator[RunDaemon]:
    """Daemons that are told to leave at the end of the test."""
    daemons: list[Daemon] = []
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:

        async def run(**settings: object) -> Daemon:
            fields = {"broker": broker.url, "task_id": task_id, "mac": mac, "app": "fl_apps:counting"}
            fields |= {"state_dir": tmp_path, "num_partition": 3, "num_partitions": 5, "join_limit_s": 20}
            daemon = Daemon(
                ClientSettings.model_validate(fields | settings),
                import_paths=(str(HERE),),
                run_config={"batch_size": 32},
            )
            group.create_task(daemon.run(), name="daemon")
            daemons.append(daemon)
            return daemon

        yield run
        for daemon in daemons:
            daemon.leave()
