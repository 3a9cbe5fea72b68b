"""A simulated fleet at the protocol level: real statuses and wills, real answers to triggers, no training.

Every client is a `BareClient`; the fleet does to all of them at once what the benchmark says.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable

import orjson
from mqtt_bare import BareClient

from fedops_mqtt.core.fencing import LAST_SEQ
from fedops_mqtt.protocol import ClientCondition, ClientStatus, encode, filter_for, topics, utc_now
from fedops_mqtt.protocol.topics import Channel

TASK = "fleet"
_AT_ONCE = 500
"""Handshakes under way at a time: a listener's queue is no longer than this on most machines."""


def mac_of(number: int) -> str:
    return f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"


class SimulatedClient:
    """One client: publishes the statuses it is given, and accepts every start."""

    def __init__(self, number: int) -> None:
        self.mac = mac_of(number)
        self._topic = str(topics.client_status(TASK, self.mac))
        self.epoch = 0
        self.renew()
        self.triggered_at: float | None = None
        self._answers: set[asyncio.Task[None]] = set()

    def renew(self) -> None:
        """Take a new connection with an epoch and a will of its own."""
        self.epoch, self._seq = max(self.epoch + 1, time.time_ns() // 1_000_000), 0
        will = encode(self._status(ClientCondition.CLIENT_OUT, reason="lost", seq=LAST_SEQ))
        self.connection = BareClient(f"{TASK}-{self.mac}", self._take, (self._topic, will))

    async def come_online(self, host: str, port: int) -> None:
        await self.connection.connect(host, port)
        channels = (Channel.CLIENT_START, Channel.CLIENT_STOP, Channel.CLIENT_STATUS)
        await self.connection.subscribe([filter_for(channel, TASK, self.mac) for channel in channels])
        await self.publish_status(ClientCondition.ONLINE)

    async def publish_status(self, condition: ClientCondition, **more: object) -> None:
        await self.connection.publish(self._topic, encode(self._status(condition, **more)), is_retained=True)

    def _status(self, condition: ClientCondition, *, seq: int | None = None, **more: object) -> ClientStatus:
        if seq is None:
            self._seq += 1
        return ClientStatus.model_validate(
            {
                "instance": f"simulated-{self.mac}",
                "epoch": self.epoch,
                "seq": seq or self._seq,
                "at": utc_now(),
                "heartbeat_s": 60,
                "status": condition,
                "task_id": TASK,
                "client_mac": self.mac,
                "client_name": f"simulated {self.mac}",
            }
            | more
        )

    def _take(self, connection: BareClient, topic: str, payload: bytes, *, is_retained: bool) -> None:
        if not topic.endswith("/start") or self.triggered_at is not None:
            return
        self.triggered_at = time.monotonic()
        start = orjson.loads(payload)
        said = {name: start[name] for name in ("run_id", "attempt", "launch")}
        run, answer = said | {"phase": "joining"}, said | {"answer": "accepted"}
        self.answer(self.publish_status(ClientCondition.TRAIN_STARTED, run=run, last_trigger=answer))

    def answer(self, saying: Coroutine[None, None, None]) -> None:
        """Say something from where nobody can wait for it."""
        answering = asyncio.get_running_loop().create_task(saying, name=f"answer-{self.mac}")
        self._answers.add(answering)
        answering.add_done_callback(self._answers.discard)


class SimulatedFleet:
    """All clients of one measurement."""

    def __init__(self, num_clients: int) -> None:
        self.clients = [SimulatedClient(number) for number in range(num_clients)]

    async def come_online(self, host: str, port: int) -> None:
        """Connect every client, subscribe it and publish that it is online."""
        await self._all(lambda client: client.come_online(host, port))

    async def say_many(self, number: int) -> None:
        """Say one status after the other, everybody at once; the last of them tells how an earlier run ended."""
        before = {"run_id": "earlier", "attempt": 1, "outcome": "finished"}

        async def publish_last(client: SimulatedClient) -> None:
            for _ in range(number - 1):
                await client.publish_status(ClientCondition.ONLINE)
            await client.publish_status(ClientCondition.TRAIN_FINISHED, last_run=before)

        await self._all(publish_last)

    def die(self) -> None:
        """Kill everybody."""
        for client in self.clients:
            client.connection.die()

    def trigger_delays(self, since: float) -> list[float]:
        """Return the seconds after which triggers reached their clients, sorted."""
        return sorted(client.triggered_at - since for client in self.clients if client.triggered_at is not None)

    async def _all(self, act: Callable[[SimulatedClient], Awaitable[None]]) -> None:
        async def work(mine: Iterable[SimulatedClient]) -> None:
            for client in mine:
                await act(client)

        async with asyncio.TaskGroup() as group:
            for first in range(_AT_ONCE):
                group.create_task(work(self.clients[first::_AT_ONCE]), name=f"fleet-{first}")
