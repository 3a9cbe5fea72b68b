"""What an outsider reads on the bus: JSON from a bare MQTT client, fenced as docs/protocol.md says.

Nothing here is the package's own, so that a fault of its decoding or its folding cannot hide itself from a test.
"""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiomqtt

ABOVE_ALL = 2**63
"""Stands for the `seq` that a last will leaves out."""
RETRY_S = 0.05
T = TypeVar("T")


class Json(dict[str, Any]):
    """One JSON object; a field that is absent is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


@dataclass(frozen=True)
class OwnerStatus:
    """The last status of one owner."""

    status: Json

    @property
    def is_out(self) -> bool:
        return str(self.status.status).endswith("-out")


@dataclass
class Observer:
    """What is known of one task and of the manager, and a way to wait for it."""

    task_id: str
    timeout_s: float
    statuses: dict[tuple[str, ...], OwnerStatus] = field(default_factory=dict)
    """By the topic's levels after `fedops/v1/`."""
    rounds: dict[str, list[Json]] = field(default_factory=lambda: defaultdict(list))
    """The server's metrics by `run_id`."""
    starts: Counter[tuple[str, int]] = field(default_factory=Counter)
    """The triggers that passed the broker, by MAC and attempt."""
    answers: list[Json] = field(default_factory=list)
    """What clients publish of each message that they answered."""
    numbers: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    """The newest values that a client measured, by MAC."""
    _waiting: dict[asyncio.Future[Any], Callable[[], Any]] = field(default_factory=dict)

    def take(self, topic: str, payload: bytes) -> None:
        """Take one message as it was delivered; whatever is no JSON object is somebody else's test."""
        self._apply(topic, payload)
        for future, look in self._waiting.items():  # here, since the next message may hide what this one shows
            if not future.done():
                _settle(future, look)

    def _apply(self, topic: str, payload: bytes) -> None:
        levels = tuple(topic.split("/")[2:])
        if not payload:
            self.statuses.pop(levels, None)
            return
        try:
            message = json.loads(payload, object_hook=Json)
        except ValueError:
            return
        if not isinstance(message, Json):
            return
        if levels[-1] == "metrics" and message.kind == "round" and message.client_mac:
            self.answers.append(message)
        if levels[-1] == "start":
            self.starts[message.client_mac, message.attempt] += 1
        elif levels[-1] == "metrics" and message.run_id and "metrics" in message:
            self.rounds[message.run_id].append(message)
        elif levels[-1] == "metrics" and message.client_mac and isinstance(message.get("values"), dict):
            self.numbers[message.client_mac] |= message["values"]
        elif "epoch" in message and self._is_newer(levels, message):
            self.statuses[levels] = OwnerStatus(message)

    def _is_newer(self, levels: tuple[str, ...], message: Json) -> bool:
        known = self.statuses.get(levels)
        return known is None or _stamp(message) > _stamp(known.status)

    async def until(self, look: Callable[[], T], *, timeout_s: float | None = None) -> T:
        """Look now and after each message; return the first answer that is true."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        _settle(future, look)
        self._waiting[future] = look
        try:
            async with asyncio.timeout(timeout_s or self.timeout_s):
                return await future
        except TimeoutError as error:
            raise AssertionError(f"it never came to that; known: {self.statuses}") from error
        finally:
            del self._waiting[future]

    def client(self, mac: str) -> OwnerStatus | None:
        return self.clients.get(mac)

    @property
    def clients(self) -> dict[str, OwnerStatus]:
        """The clients of the task by MAC."""
        of_task = {key[2]: found for key, found in self.statuses.items() if key[:2] == (self.task_id, "clients")}
        return {level.replace("-", ":"): found for level, found in of_task.items()}

    @property
    def server(self) -> OwnerStatus | None:
        return self.statuses.get((self.task_id, "server", "status"))

    @property
    def manager(self) -> OwnerStatus | None:
        return self.statuses.get(("manager", "status"))

    @property
    def runs(self) -> dict[str, Json]:
        """The runs of the task by their ids."""
        return {key[2]: found.status for key, found in self.statuses.items() if key[:2] == (self.task_id, "runs")}

    async def until_client(self, mac: str, *conditions: str, **waiting: float) -> OwnerStatus:
        """Wait until a client's status is one of these."""

        def look() -> OwnerStatus | None:
            found = self.clients.get(mac)
            return found if found is not None and found.status.status in conditions else None

        found = await self.until(look, **waiting)
        assert found is not None
        return found

    async def until_run(self, run_id: str, is_true: Callable[[Json], bool], **waiting: float) -> Json:

        def look() -> Json | None:
            run = self.runs.get(run_id)
            return run if run is not None and is_true(run) else None

        run = await self.until(look, **waiting)
        assert run is not None
        return run

    async def until_only_ended(self, **waiting: float) -> Json:
        """Wait until the task's only run has ended, whoever started it."""
        await self.until(lambda: any(run.outcome for run in self.runs.values()), **waiting)
        (run,) = self.runs.values()
        return run

    async def until_ended(self, run_id: str, **waiting: float) -> Json:
        return await self.until_run(run_id, lambda run: run.outcome is not None, **waiting)


def _settle(future: "asyncio.Future[T]", look: Callable[[], T]) -> None:
    """Give a waiter its answer, if it is true, or the error of its look."""
    try:
        if answer := look():
            future.set_result(answer)
    except Exception as error:
        future.set_exception(error)


def _stamp(status: Json) -> tuple[int, int]:
    return status["epoch"], status.get("seq") or ABOVE_ALL


@asynccontextmanager
async def observing(url: str, task_id: str, *, timeout_s: float = 300.0) -> AsyncIterator[Observer]:
    """Read a task's topics for as long as the block lasts, past every restart of the broker."""
    observer, broker = Observer(task_id, timeout_s), urlsplit(url)

    async def read() -> None:
        while True:
            try:
                async with aiomqtt.Client(broker.hostname or "", broker.port or 1883) as bus:
                    await bus.subscribe([(f"fedops/v1/{task_id}/#", 1), ("fedops/v1/manager/status", 1)])
                    async for message in bus.messages:
                        observer.take(str(message.topic), bytes(message.payload or b""))
            except aiomqtt.MqttError:
                await asyncio.sleep(RETRY_S)

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read(), name="observer")
        try:
            yield observer
        finally:
            reading.cancel()
