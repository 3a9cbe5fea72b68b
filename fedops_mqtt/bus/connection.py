"""The connection to the broker: it connects, subscribes, and does both again for ever after every loss.

What is published while there is no connection is refused at once, never queued: a status is superseded by the
snapshot that its owner announces after `Connected`, and a trigger that comes late is worse than none.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fedops_mqtt.bus.address import BusOptions, VersionChoice
from fedops_mqtt.bus.brokers import Attempt, Brokers
from fedops_mqtt.bus.errors import (
    BusError,
    ClientIdError,
    ConnectError,
    ConnectTimeoutError,
    NotConnectedError,
    PublishRefusedError,
    VersionError,
)
from fedops_mqtt.bus.events import DROPPED_TOPIC, BusEvent, Connected, Disconnected, Dropped, EventBuffer, Intake
from fedops_mqtt.bus.session import MqttSession, WillPacket, open_session
from fedops_mqtt.protocol import Message, Topic, encode
from fedops_mqtt.runtime.background import alongside, raise_if_cancelled
from fedops_mqtt.runtime.backoff import Backoff

logger = logging.getLogger(__name__)

STABLE_AFTER_S = 10.0
"""A connection that lasted this long was a good one: back-off starts anew. Two that evict each other last shorter."""

REFUSED_FOR_S = 20.0
"""How long a broker is given to grant a subscription again: NATS that lost a node refuses for 5 to 16 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A message and the topic it goes to."""

    topic: Topic
    message: Message


MakeWill = Callable[[], Awaitable[Publication | None]]
Observer = Callable[[BusEvent], None]


class Connection:
    """A connection that heals itself, as an async context manager; entering it does not wait for the broker.

    Args:
        url: see `parse_broker_url`; several with a comma between them, the preferred one first.
        client_id: MQTT client id; None lets the broker choose.
        subscriptions: topic filters, subscribed after every connect.
        make_will: asked for the last will before every CONNECT; it must be fresh, its epoch belongs to the connection.
        options: time-outs, credentials, TLS files, back-off.
        counts_drops: also ask for the broker's count of dropped messages (`Dropped`), where it has one.
        observers: called with every event as it happens, before it can be drained; they must not raise or block.
        may_move: asked before a connection is left because a preferred broker answers again; False: not now.

    Attributes:
        dropped: the broker's last count of dropped messages, where it is asked for and answered.

    Raises:
        BrokerUrlError: the URL or a TLS file cannot be used.
        ClientIdError: while the block runs: the broker does not take the client id.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str | None = None,
        subscriptions: Sequence[str] = (),
        make_will: MakeWill | None = None,
        options: BusOptions | None = None,
        counts_drops: bool = False,
        observers: Sequence[Observer] = (),
        may_move: Callable[[], bool] = lambda: True,
    ) -> None:
        self._options = options or BusOptions()
        self._brokers = Brokers(url, self._options)
        self._may_move = may_move
        self._client_id = client_id
        self._filters = list(dict.fromkeys(subscriptions))
        self._added: list[str] = []
        self._make_will = make_will
        self._counts_drops = counts_drops
        self._observers = list(observers)
        self._intake = Intake()
        self._buffer = EventBuffer()
        self._session: MqttSession | None = None
        self._held: list[BusEvent] | None = None
        self._first_try: asyncio.Future[None] | None = None
        self._logged: set[str] = set()
        self._in_flight = asyncio.Semaphore(self._options.max_inflight_publishes)
        self._version = VersionChoice(self._options.is_mqtt5_tried)
        self._backoff = Backoff(initial_s=self._options.backoff_initial_s, max_s=self._options.backoff_max_s)
        self._stack = AsyncExitStack()
        self.dropped: Dropped | None = None

    async def __aenter__(self) -> Self:
        self._first_try = asyncio.get_running_loop().create_future()
        await self._stack.enter_async_context(alongside(self._stay_connected(), name="bus-connection"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, traceback)

    @property
    def broker(self) -> str:
        """URL, without user and password, of the broker that is connected, or was last."""
        return self._brokers.last

    @property
    def is_connected(self) -> bool:
        """True while connected and subscribed."""
        return self._session is not None

    @property
    def protocol_version(self) -> str:
        """The MQTT version in use, `5` or `3.1.1`; empty while not connected."""
        return self._session.protocol_version if self._session else ""

    @property
    def num_malformed(self) -> int:
        """Malformed messages dropped since the start."""
        return self._intake.num_malformed

    async def wait_first_try(self) -> None:
        """Wait for the outcome of the first attempt to connect; the connection goes on trying in any case.

        Raises:
            ConnectError: the first attempt failed; `CredentialsError` where the broker refuses us.
        """
        if self._first_try is None:
            raise NotConnectedError(self.broker)
        await asyncio.shield(self._first_try)

    async def publish(self, topic: Topic, message: Message | None) -> None:
        """Publish a message, or clear what is retained with None; retain and QoS follow from the topic.

        Await one call before the next where order matters on a topic.

        Raises:
            NotConnectedError: there is no connection, or it broke before the broker acknowledged.
            PublishRefusedError: the broker refuses it (with MQTT 3.1.1 it cannot report that).
            PublishTimeoutError: it did not acknowledge within `publish_timeout_s`.
        """
        payload = b"" if message is None else encode(message)
        async with self._in_flight:
            if self._session is None:
                raise NotConnectedError(self.broker)
            channel = topic.channel
            await self._session.publish(str(topic), payload, qos=channel.qos, is_retained=channel.is_retained)

    async def publish_foreign(self, topic: str, payload: bytes, *, is_retained: bool) -> None:
        """Publish what is not of our protocol, for other systems on the same broker; raises as `publish` does."""
        async with self._in_flight:
            if self._session is None:
                raise NotConnectedError(self.broker)
            await self._session.publish(topic, payload, qos=1, is_retained=is_retained)

    async def drain(self, timeout_s: float | None = None) -> list[BusEvent]:
        """Wait for at least one event, then return everything that is there; an empty list when none came in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._buffer.wait()
        return self._buffer.take_all()

    async def events(self) -> AsyncIterator[BusEvent]:
        """Yield every event in order, for ever. One reader at a time; `drain` takes from the same buffer."""
        while True:
            await self._buffer.wait()
            while (event := self._buffer.take()) is not None:
                yield event

    async def reconnect(self, reason: str = "reconnect asked for") -> None:
        """Leave the connection cleanly (no last will) and connect again with a new will; does not wait for it."""
        if self._session is not None:
            self._session.end(reason)

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Add topic filters, now and after every reconnect; the broker sends again what is retained there.

        Raises:
            NotConnectedError: there is no connection now; it subscribes to them as soon as there is.
            PublishRefusedError: the broker does not grant one of them; it is not asked for that one again.
        """
        fresh = [each for each in dict.fromkeys(filters) if each not in (*self._filters, *self._added)]
        self._added += fresh
        if self._session is None:
            raise NotConnectedError(self.broker)
        refusals = await self._session.subscribe(list(filters))
        if refusals:
            refused = {refusal.topic for refusal in refusals}
            self._added = [each for each in self._added if each not in refused.intersection(fresh)]
            raise refusals[0]

    async def _stay_connected(self) -> None:
        while True:
            raise_if_cancelled()
            try:
                await self._try_each()
            except ClientIdError as error:
                self._fail_first_try(error)
                raise
            await asyncio.sleep(self._backoff.next_wait_s())

    async def _try_each(self) -> None:
        """Try every broker until one has been connected, and that connection came to its end."""
        async with aclosing(self._brokers.round()) as attempts:
            async for attempt in attempts:
                try:
                    await self._try(attempt)
                except ConnectError as error:
                    self._brokers.failed(error)
                else:
                    return
        self._note_failure(self._brokers.problem())

    async def _try(self, attempt: Attempt) -> None:
        """Connect, in 3.1.1 where the broker does not take 5, and stay until the connection ends."""
        while True:
            try:
                await self._connect_once(attempt)
            except ConnectError as error:
                is_slow = isinstance(error, ConnectTimeoutError) and not attempt.is_quick
                if not self._version.failed(is_version_doubtful=is_slow or isinstance(error, VersionError)):
                    raise
            else:
                return

    async def _connect_once(self, attempt: Attempt) -> None:
        will = await self._will_packet()
        self._held = []
        self.dropped = None
        async with open_session(
            attempt.endpoint,
            attempt.options,
            client_id=self._client_id,
            is_mqtt5=self._version.is_mqtt5,
            tls=self._brokers.tls(attempt.endpoint),
            will=will,
            on_message=self._take_in,
        ) as session:
            self._brokers.connected(attempt)
            async with alongside(self._return_to_better(attempt, session), name="bus-return"):
                await self._serve(session)

    async def _return_to_better(self, attempt: Attempt, session: MqttSession) -> None:
        """Leave when a preferred broker takes connections again, at a moment of our own and with nothing under way."""
        while attempt.better:
            await asyncio.sleep(self._options.return_s * random.uniform(0.5, 1.5))  # noqa: S311
            if not self._may_move():
                continue
            can_return = await self._brokers.can_connect(attempt.better, is_mqtt5=session.is_mqtt5)
            if can_return and session.is_idle and self._may_move():
                session.end("a preferred broker can be used again")
                return

    async def _will_packet(self) -> WillPacket | None:
        publication = await self._make_will() if self._make_will else None
        if publication is None:
            return None
        topic, channel = publication.topic, publication.topic.channel
        payload = encode(publication.message)
        return WillPacket(topic=str(topic), payload=payload, qos=channel.qos, is_retained=channel.is_retained)

    async def _serve(self, session: MqttSession) -> None:
        since = time.monotonic()
        async with alongside(self._begin(session), name="bus-subscribe"):
            reason = await session.wait_ended()
        if time.monotonic() - since >= STABLE_AFTER_S:
            self._backoff.reset()
        self._version.ended()
        self._lose(reason)

    async def _begin(self, session: MqttSession) -> None:
        """Subscribe, then let in what came meanwhile: no message is delivered before `Connected`."""
        try:
            await self._ask_for_drops(session)  # before what it may drop
            await self._subscribe_all(session)
        except NotConnectedError as error:
            session.end(str(error))
            return
        self._session = session
        self._note_success(session)
        self._push(Connected(session.protocol_version))
        held, self._held = self._held or [], None
        for event in held:
            self._push(event)

    async def _ask_for_drops(self, session: MqttSession) -> None:
        """A broker that refuses this, or even hangs up, is not asked again."""
        if not self._counts_drops:
            return
        self._counts_drops = False
        self._counts_drops = not await session.subscribe([DROPPED_TOPIC])

    async def _subscribe_all(self, session: MqttSession) -> None:
        """Subscribe until everything is granted: a broker that lost a node refuses for a while, and then grants.

        What was added later is given up for this connection after a while: its refusal must not take the rest away.
        """
        missing, given_up_at = [*self._filters, *self._added], time.monotonic() + REFUSED_FOR_S
        while missing:
            refusals = await session.subscribe(missing)
            missing = [refusal.topic for refusal in refusals]
            if not refusals:
                return
            self._note_failure(refusals[0])
            if time.monotonic() >= given_up_at and not set(missing).intersection(self._filters):
                return
            await asyncio.sleep(self._backoff.next_wait_s())

    def _take_in(self, topic: str, payload: bytes, is_retained: bool) -> None:
        event = self._intake.read(topic, payload, is_retained=is_retained)
        if isinstance(event, Dropped):
            self.dropped = event
        if self._held is None:
            self._push(event)
        else:
            self._held.append(event)

    def _push(self, event: BusEvent) -> None:
        for observer in self._observers:
            observer(event)
        self._buffer.put(event)

    def _lose(self, reason: str) -> None:
        if self._session is None:
            return
        self._session = None
        logger.warning("lost the connection to the broker", extra={"broker": self.broker, "reason": reason})
        self._push(Disconnected(reason))

    def _note_failure(self, error: ConnectError | PublishRefusedError) -> None:
        """Log each problem once an outage: the first need not be the one that lasts."""
        if isinstance(error, ConnectError):
            self._fail_first_try(error)
        problem = str(error)
        if problem not in self._logged:
            self._logged.add(problem)
            logger.error("cannot use the broker, trying again until it works", extra={"problem": problem})

    def _fail_first_try(self, error: BusError) -> None:
        if self._first_try and not self._first_try.done():
            self._first_try.set_exception(error)
            self._first_try.exception()

    def _note_success(self, session: MqttSession) -> None:
        if self._first_try and not self._first_try.done():
            self._first_try.set_result(None)
        facts = {"broker": self.broker, "protocol_version": session.protocol_version}
        logger.info("connected to the broker", extra=facts)
        self._logged.clear()
