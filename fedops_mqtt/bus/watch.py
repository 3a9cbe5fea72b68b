"""The public API of the bus: typed messages for dashboards and daemons that others write.

    async with fedops_mqtt.connect("mqtt://127.0.0.1:1883") as bus:
        async for message in bus.watch("my-task"):
            print(message)

`watch` yields what is true: the present status of every owner first, then each change; a status that a newer one has
overtaken (a last will that comes after its client is back) never appears.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from fedops_mqtt.bus.address import BusOptions
from fedops_mqtt.bus.connection import Connection
from fedops_mqtt.bus.errors import NotConnectedError
from fedops_mqtt.bus.events import BusEvent, Cleared, Connected, EventBuffer, Malformed, Received
from fedops_mqtt.bus.fleet_view import FleetView, Record
from fedops_mqtt.core.fencing import Stamp, stamp_of
from fedops_mqtt.protocol import Channel, Message, StatusMessage, Topic, filter_for
from fedops_mqtt.runtime.background import alongside

WATCHED_CHANNELS = (
    Channel.CLIENT_STATUS,
    Channel.CLIENT_METRICS,
    Channel.SERVER_STATUS,
    Channel.SERVER_METRICS,
    Channel.RUN_STATUS,
    Channel.MANAGER_STATUS,
)
"""What any user may read; triggers carry tokens and are for the addressed client alone."""

_LEASES_S = 1.0
"""Between two looks of `changes` whose lease has ended: a look takes time for each client."""


def connect(
    url: str,
    *,
    user: str | None = None,
    password: str | None = None,
    client_id: str | None = None,
    options: BusOptions | None = None,
) -> "Bus":
    """Return a bus to enter with `async with`; it reads no settings and no environment.

    Args:
        url: `mqtt://[user:password@]host[:port]` or `mqtts://…`.
        user: user name, where the URL has none.
        password: its password.
        client_id: MQTT client id; a broker lets only one connection have it. None: the broker chooses.
        options: time-outs and TLS files, and user and password where they are not given here.

    Raises:
        BrokerUrlError: the URL or a TLS file cannot be used.
    """
    chosen = options or BusOptions()
    chosen = replace(
        chosen,
        user=chosen.user if user is None else user,
        password=chosen.password if password is None else password,
    )
    return Bus(Connection(url, client_id=client_id, options=chosen, counts_drops=True))


class Bus:
    """A connected bus. Entering it waits for the broker once; a connection lost later comes back by itself.

    Raises (on entering):
        CredentialsError: the broker does not take this user name and password.
        ConnectError: the broker was not reached.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffers: list[EventBuffer] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._connection)
            await self._connection.wait_first_try()
            await self._connection.drain()  # the first `Connected`: nobody watches yet
            await stack.enter_async_context(alongside(self._distribute(), name="bus-watch"))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, traceback)

    @property
    def is_connected(self) -> bool:
        """True while connected and subscribed."""
        return self._connection.is_connected

    async def watch(self, task_id: str | None = None) -> AsyncIterator[Message]:
        """Yield statuses and metrics of a task, or of all of them with None, for ever.

        What the broker retains comes first, then live messages; each event has which it is.

        Raises:
            IdentityError: `task_id` is invalid.
            PublishRefusedError: the broker does not let us read this.
        """
        newest: dict[Topic, Stamp] = {}
        async for event in self.events(task_id):
            match event:
                case Received(topic, message, _) if _is_news(newest, topic, message):
                    yield message
                case Cleared(topic):
                    newest.pop(topic, None)
                case _:
                    pass

    async def events(self, task_id: str | None = None) -> AsyncIterator[BusEvent]:
        """Yield what `watch` reads, unfenced: also connections, disconnections, cleared topics, and what is retained.

        `fleet` makes presence of it.

        Raises:
            IdentityError, PublishRefusedError: as for `watch`.
        """
        async with self._buffer(task_id) as (buffer, first):
            for event in first:
                yield event
            while True:
                await buffer.wait()
                for event in buffer.take_all():
                    if _concerns(event, task_id):
                        yield event

    async def fleet(self, task_id: str | None = None) -> AsyncIterator[FleetView]:
        """Yield who is present, by the manager's own rules, after each change; the same view each time, updated.

        A client whose lease ended is `out` in it, though nothing was received.

            async for fleet in bus.fleet("my-task"):
                print({view.status.client_name: view.presence for view in fleet.clients()})

        Raises:
            IdentityError, PublishRefusedError: as for `watch`.
        """
        view = FleetView()
        async with aclosing(self.changes(view, task_id)) as changes:
            await anext(changes)  # the connection alone: nobody is known yet
            async for changed in changes:
                if changed:
                    yield view

    async def changes(self, view: FleetView, task_id: str | None = None) -> AsyncGenerator[list[Record], None]:
        """Apply what is received to a view, for ever; yield what each batch of events changed, which may be nothing.

        The first batch is the connection as it is now. Leases that end, and messages that the broker dropped, are
        changes too.

        Raises:
            IdentityError, PublishRefusedError: as for `watch`.
        """
        async with self._buffer(task_id) as (buffer, first):
            yield _take_all(view, first, time.monotonic())
            looks_at = time.monotonic() + _LEASES_S
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(looks_at - time.monotonic()):
                        await buffer.wait()
                now = time.monotonic()
                events = [event for event in buffer.take_all() if _concerns(event, task_id)]
                changes = _take_all(view, events, now)
                if now >= looks_at:
                    looks_at = now + _LEASES_S
                    changes += view.expire(now)
                    problem = view.problem()
                    changes += [problem] if problem is not None else []
                if events or changes:
                    yield changes

    @asynccontextmanager
    async def _buffer(self, task_id: str | None) -> AsyncIterator[tuple[EventBuffer, list[BusEvent]]]:
        """Subscribe to what a task's readers want; yields what is received from then on, and what comes before it."""
        filters = [filter_for(channel, task_id) for channel in WATCHED_CHANNELS]
        buffer = EventBuffer()
        self._buffers.append(buffer)
        try:
            first: list[BusEvent] = []
            if await self._subscribe(filters):
                first.append(Connected(self._connection.protocol_version))
                if self._connection.dropped is not None:
                    first.append(self._connection.dropped)
            yield buffer, first
        finally:
            self._buffers.remove(buffer)

    async def publish(self, topic: Topic, message: Message | None) -> None:
        """Publish a message to a topic made with `protocol.topics`; None clears what is retained there.

        Raises:
            NotConnectedError, PublishRefusedError, PublishTimeoutError: see `Connection.publish`.
        """
        await self._connection.publish(topic, message)

    async def _subscribe(self, filters: Sequence[str]) -> bool:
        """Subscribe; False when the connection is away now: it subscribes when it is back, and yields `Connected`."""
        try:
            await self._connection.subscribe(filters)
        except NotConnectedError:
            return False
        return self._connection.is_connected

    async def _distribute(self) -> None:
        async for event in self._connection.events():
            for buffer in self._buffers:
                buffer.put(event)


def _take_all(view: FleetView, events: Sequence[BusEvent], now: float) -> list[Record]:
    return [change for event in events if (change := view.take(event, now)) is not None]


def _concerns(event: BusEvent, task_id: str | None) -> bool:
    match event:
        case Received(topic=topic) | Cleared(topic=topic):
            return task_id is None or topic.task_id in (None, task_id)
        case Malformed():
            return task_id is None
        case _:
            return True


def _is_news(newest: dict[Topic, Stamp], topic: Topic, message: Message) -> bool:
    """Return whether a message is news, and remember it; metrics always are."""
    if not isinstance(message, StatusMessage):
        return True
    stamp = stamp_of(message)
    if topic in newest and stamp <= newest[topic]:
        return False
    newest[topic] = stamp
    return True
