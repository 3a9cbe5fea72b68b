"""An FLServer in a thread, or as a process, with a real broker, and clients on its line."""

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedops_mqtt.bus import Connection, Mosquitto, Received
from fedops_mqtt.demo import digits
from fedops_mqtt.demo.client import client_app
from fedops_mqtt.line.client_session import RunEnd
from fedops_mqtt.line.runner import LineRunner, make_context
from fedops_mqtt.protocol import Channel, ServerMetrics, ServerStatus, filter_for
from fedops_mqtt.runtime.settings import ServerSettings
from fedops_mqtt.server.app import FLServer, RunResult
from fedops_mqtt.store.versions import ModelStore

WAIT_S = 300.0

BUCKET = "models"
"""Generous: a machine under load; nothing waits this long when it works."""
PROGRAM = Path(__file__).with_name("server_program.py")


def mac_of(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def evaluate(round_: int, arrays: Any) -> dict[str, float]:
    loss, accuracy = digits.evaluate(arrays, digits.load_test())
    return {"loss": loss, "accuracy": accuracy}


class Client:
    """A LineRunner in a thread, with a partition of the digits."""

    def __init__(self, address: str, number: int, of: int, app: ClientApp, attempt: int, token: str | None) -> None:
        self.mac = mac_of(number)
        self.runner = LineRunner(
            server_ip=address,
            client_mac=self.mac,
            instance=f"i{number}",
            attempt=attempt,
            token=token,
            join_s=WAIT_S,
            rejoin_s=WAIT_S,
        )
        config: dict[str, Any] = {"partition-id": number, "num-partitions": of}
        self._result: queue.Queue[RunEnd] = queue.Queue()
        threading.Thread(
            target=lambda: self._result.put(
                self.runner.run(app, lambda joined: make_context(joined, node_config=config))
            ),
            daemon=True,
        ).start()

    async def end(self) -> RunEnd:
        return await asyncio.to_thread(self._result.get, timeout=WAIT_S)


class Gate:
    """Stands before training: says who is in, and waits to be let out."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.release()
        assert self.opened.wait(WAIT_S)

    async def wait_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=WAIT_S)


def gated_app(gate: Callable[[], None], *, from_round: int = 1) -> ClientApp:
    """The demo's app, with something before the training of each round from `from_round` on."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if int(str(message.content.config_records["config"]["server-round"])) >= from_round:
            gate()
        return client_app(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return client_app(message, context)

    return app


class Bus:
    """What the bus says about one task's server; wait for what must come."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.statuses: list[ServerStatus] = []
        self.metrics: list[ServerMetrics] = []

    async def status(self, is_wanted: Callable[[ServerStatus], bool]) -> ServerStatus:
        async with asyncio.timeout(WAIT_S):
            while not any(is_wanted(status) for status in self.statuses):
                await self._take()
        return next(status for status in self.statuses if is_wanted(status))

    async def final(self, launch: int = 0) -> ServerStatus:
        return await self.status(lambda status: status.status.is_final and status.launch >= launch)

    async def ready(self, launch: int = 0) -> str:
        said = await self.status(lambda s: s.launch == launch and s.server_ip is not None and not s.status.is_final)
        assert said.server_ip is not None
        return said.server_ip

    async def round(self, number: int) -> ServerMetrics:
        async with asyncio.timeout(WAIT_S):
            while not any(metrics.round == number for metrics in self.metrics):
                await self._take()
        return [metrics for metrics in self.metrics if metrics.round == number][-1]

    async def _take(self) -> None:
        for event in await self.connection.drain():
            match event:
                case Received(_, ServerStatus() as status, _):
                    self.statuses.append(status)
                case Received(_, ServerMetrics() as metrics, _):
                    self.metrics.append(metrics)


class Process:
    """A server program as a process of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.popen = subprocess.Popen(arguments, env={**os.environ, **environment})

    async def wait(self) -> int:
        return await asyncio.to_thread(self.popen.wait, WAIT_S)

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(WAIT_S)


class House:
    """Makes servers and clients of one task, and ends them all."""

    def __init__(self, broker: Mosquitto, task_id: str, folder: Path, stack: ExitStack) -> None:
        self._broker = broker
        self.broker_url = broker.url
        self.task_id = task_id
        self.folder = folder
        self._stack = stack
        self._runs: list[asyncio.Task[RunResult]] = []

    def beside(self, folder: Path) -> "House":
        """Another house with the same broker: another task, another folder."""
        return House(self._broker, f"{self.task_id}-beside", folder, self._stack)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def models(self) -> ModelStore:
        return ModelStore(str(self.store), task_id=self.task_id, model_name="digits")

    def settings(self, **options: Any) -> ServerSettings:
        values = {
            "broker": self.broker_url,
            "task_id": self.task_id,
            "store": str(self.store),
            "state_dir": self.folder / "state",
            "num_rounds": 2,
            "min_clients": 2,
            "join_limit_s": WAIT_S,
            "line_ping_s": 10.0,
            "backoff_max_s": 0.5,
            **options,
        }
        return ServerSettings(**values)

    def make(self, settings: ServerSettings | None = None, **arguments: Any) -> FLServer:
        values: dict[str, Any] = {"evaluate_fn": evaluate, "settings": settings or self.settings(), **arguments}
        server = FLServer(None, digits.initial_arrays(), "digits", **values)
        self._stack.callback(server.stop)
        return server

    def start(self, server: FLServer) -> "asyncio.Task[RunResult]":
        run = asyncio.create_task(asyncio.to_thread(server.start), name="fl-server")
        self._runs.append(run)
        return run

    async def wait_empty(self) -> None:
        """Wait for the servers that a test left running; they have been stopped."""
        if self._runs:
            await asyncio.wait(self._runs, timeout=WAIT_S)

    def spawn(self, *arguments: str, **options: Any) -> Process:
        environment = {
            f"FEDOPS_MQTT_{name.upper()}": str(value)
            for name, value in self.settings(**options).model_dump(exclude_unset=True).items()
        }
        process = Process([sys.executable, str(PROGRAM), *arguments], environment)
        self._stack.callback(process.close)
        return process

    def join(
        self,
        address: str,
        number: int = 0,
        *,
        of: int = 2,
        app: ClientApp = client_app,
        attempt: int = 1,
        token: str | None = None,
    ) -> Client:
        client = Client(address, number, of, app, attempt, token)
        self._stack.callback(client.runner.stop, "test is over")
        return client

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Bus]:
        filters = [filter_for(channel, self.task_id) for channel in (Channel.SERVER_STATUS, Channel.SERVER_METRICS)]
        async with Connection(self.broker_url, subscriptions=filters) as connection:
            await connection.wait_first_try()
            yield Bus(connection)
