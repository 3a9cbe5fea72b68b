"""What the tests of the bus share: a client's statuses, an owner, and waiting for what proves something."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import aiomqtt

from fedops_mqtt.bus import (
    BusEvent,
    BusOptions,
    Connected,
    Connection,
    EpochStore,
    MemoryEpochs,
    Mosquitto,
    Received,
    StatusOwner,
    new_instance,
)
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.protocol import ClientCondition, ClientStatus, Topic, topics, utc_now

MAC = "02:00:00:00:00:01"
PATIENCE_S = 300.0
"""How long a test waits for what must come; generous, since a passing test never uses it up."""

QUICK = BusOptions(backoff_initial_s=0.02, backoff_max_s=0.1, connect_timeout_s=60.0, publish_timeout_s=60.0)
Event = TypeVar("Event")


def status(
    task_id: str, condition: ClientCondition = ClientCondition.ONLINE, *, mac: str = MAC, instance: str = "someone",
    epoch: int = 1, seq: int = 1, reason: str | None = None, name: str = "",
) -> ClientStatus:  # fmt: skip
    return ClientStatus(
        status=condition, reason=reason, task_id=task_id, client_mac=mac, client_name=name, instance=instance,
        epoch=epoch, seq=seq, at=utc_now(),
    )  # fmt: skip


class Daemon:
    """The owner of a client's status, as the client daemon has one; `name` is its changing condition."""

    def __init__(self, task_id: str, *, epochs: EpochStore | None = None, heartbeat_s: float = 600.0) -> None:
        self.task_id = task_id
        self.name = "first"
        self.agent: dict[str, str] = {}
        self.instance = new_instance()
        self.topic = topics.client_status(task_id, MAC)
        self.owner = StatusOwner(
            topic=self.topic,
            instance=self.instance,
            make_snapshot=lambda stamp: self._status_at(stamp, ClientCondition.ONLINE),
            make_will=lambda stamp: self._status_at(stamp, ClientCondition.CLIENT_OUT, "lost"),
            make_goodbye=lambda stamp, reason: self._status_at(stamp, ClientCondition.CLIENT_OUT, reason),
            epochs=epochs or MemoryEpochs(),
            heartbeat_s=heartbeat_s,
        )

    def rename(self, name: str) -> None:
        self.name = name
        self.owner.update()

    @asynccontextmanager
    async def on(self, url: str, *, client_id: str | None = None) -> AsyncIterator[Connection]:
        async with self.owner.on_bus(url, client_id=client_id, options=QUICK) as connection:
            yield connection

    def _status_at(self, stamp: Stamp, condition: ClientCondition, reason: str | None = None) -> ClientStatus:
        return status(
            self.task_id, condition, instance=self.instance, epoch=stamp.epoch, seq=stamp.seq, reason=reason,
            name=self.name,
        ).model_copy(update={"agent": self.agent})  # fmt: skip


@asynccontextmanager
async def reader_of(broker: Mosquitto, *filters: str, options: BusOptions = QUICK) -> AsyncIterator[Connection]:
    """A subscriber that is subscribed when the block begins."""
    async with Connection(broker.url, subscriptions=filters, options=options) as connection:
        await next_event(connection, Connected)
        yield connection


async def next_event(
    connection: Connection, kind: type[Event], where: Callable[[Event], bool] = lambda _: True
) -> Event:
    """Return the next event of a kind for which `where` holds, skipping the others."""
    async with asyncio.timeout(PATIENCE_S):
        async for event in connection.events():
            if isinstance(event, kind) and where(event):
                return event
    raise AssertionError("a connection's events end only with it")


async def next_status(connection: Connection, where: Callable[[ClientStatus], bool]) -> ClientStatus:
    def matches(event: Received) -> bool:
        return isinstance(event.message, ClientStatus) and where(event.message)

    message = (await next_event(connection, Received, matches)).message
    assert isinstance(message, ClientStatus)
    return message


async def retained_on(broker: Mosquitto, topic: Topic) -> BusEvent | None:
    """Return what a newcomer reads on a topic: a message sent to oneself afterwards tells that nothing more comes."""
    marker = topics.client_metrics("marker", MAC)
    async with Connection(broker.url, subscriptions=[str(topic), str(marker)], options=QUICK) as newcomer:
        await next_event(newcomer, Connected)
        await say_raw(broker, str(marker), b"end")
        seen: list[BusEvent] = []
        async with asyncio.timeout(PATIENCE_S):
            async for event in newcomer.events():
                if getattr(event, "topic_text", "") == str(marker):
                    return seen[0] if seen else None
                seen.append(event)
    return None


async def retained_status(broker: Mosquitto, topic: Topic) -> ClientStatus:
    event = await retained_on(broker, topic)
    assert isinstance(event, Received)
    assert isinstance(event.message, ClientStatus)
    assert event.is_retained
    return event.message


async def say_raw(broker: Mosquitto, topic: str, payload: bytes, *, is_retained: bool = False) -> None:
    """Publish any bytes on any topic, as a stranger with a client of their own could."""
    async with aiomqtt.Client(broker.host, broker.port) as stranger:
        await stranger.publish(topic, payload, qos=1, retain=is_retained)
