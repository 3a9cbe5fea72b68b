"""What tests of the client share: FL servers as processes, jobs, somebody on the bus who watches and triggers."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from fl_server import make_line_server, serve

from fedops_mqtt.bus import Connection, Received
from fedops_mqtt.device.daemon import Daemon
from fedops_mqtt.line.access import make_token
from fedops_mqtt.line.grid import RunEndedError
from fedops_mqtt.protocol import (
    ClientCondition,
    ClientMetrics,
    ClientStatus,
    RunOutcome,
    StartTrigger,
    StopTrigger,
    topics,
    utc_now,
)
from fedops_mqtt.training.pipe import Job

HERE = Path(__file__).parent
SECRET = b"0123456789abcdef"
PATIENCE_S = 300.0
"""Means "hangs", on a machine ten times slower too."""


class ServeFl(Protocol):
    """Starts an FL server and returns its address."""

    async def __call__(self, *arguments: str) -> str: ...


@asynccontextmanager
async def fl_server(*arguments: str) -> AsyncIterator[str]:
    """An FL server, with the arguments of `fl_server.py`: one of the line in a thread, a classic one as a process."""
    if arguments[0] == "line":
        async with line_server(*arguments[1:]) as address:
            yield address
    else:
        async with fl_process(*arguments) as address:
            yield address


@asynccontextmanager
async def line_server(run_id: str, secret: str, num_rounds: str, launch: str = "1") -> AsyncIterator[str]:
    with make_line_server(run_id, secret, int(launch)) as server:
        serving = asyncio.create_task(asyncio.to_thread(serve, server, int(num_rounds)), name="fl-server")
        try:
            yield server.address
        finally:
            server.interrupt(RunOutcome.STOPPED, "the test is over")
            with suppress(RunEndedError):
                await serving


@asynccontextmanager
async def fl_process(*arguments: str) -> AsyncIterator[str]:
    server = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "fl_server.py"), *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield (await server.stdout.readline()).decode().strip()
    finally:
        if server.returncode is None:
            server.kill()
        await server.communicate()


MakeJob = Callable[..., Job]


class Operator:
    """Somebody on the bus who watches one client and tells it things, as a manager does."""

    def __init__(self, bus: Connection, task_id: str, mac: str) -> None:
        self.bus = bus
        self.task_id = task_id
        self.mac = mac
        self.statuses: list[ClientStatus] = []
        self.metrics: list[ClientMetrics] = []

    async def until(self, is_it: Callable[[ClientStatus], bool], *, timeout_s: float = PATIENCE_S) -> ClientStatus:
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

    async def until_metrics(self, is_it: Callable[[ClientMetrics], bool], *, timeout_s: float = PATIENCE_S) -> None:
        """Wait for numbers: they may come after the status that tells of the same moment, and before it."""
        async with asyncio.timeout(timeout_s):
            while not any(is_it(said) for said in self.metrics):
                for event in await self.bus.drain():
                    if isinstance(event, Received) and isinstance(event.message, ClientMetrics):
                        self.metrics.append(event.message)

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


class RunDaemon(Protocol):
    """Starts a daemon of this test's client in the test's own loop."""

    async def __call__(self, **settings: object) -> Daemon: ...
