"""What a connection delivers: frozen events, in the order in which things happened at broker and connection."""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from functools import lru_cache

from fedops_mqtt.core.fencing import Stamp, stamp_of
from fedops_mqtt.core.ownership import latest_epoch
from fedops_mqtt.protocol import (
    ClientMetrics,
    MalformedMessageError,
    Message,
    OwnedStatus,
    ProtocolError,
    ServerMetrics,
    StatusMessage,
    Topic,
    decode,
    parse_topic,
)


@dataclass(frozen=True, slots=True)
class Connected:
    """Connected and subscribed (again): owners announce, readers start their leases anew."""

    protocol_version: str
    """`5` or `3.1.1`."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection has broken; the bus connects again by itself."""

    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """A valid message. `is_retained`: the broker's copy for a newcomer, not a live one."""

    topic: Topic
    message: Message
    is_retained: bool


@dataclass(frozen=True, slots=True)
class Cleared:
    """Somebody removed what the broker retained here: a run was archived, a client was forgotten."""

    topic: Topic


@dataclass(frozen=True, slots=True)
class Malformed:
    """Something that is no message of the protocol; it was counted, logged and dropped."""

    topic_text: str
    error: ProtocolError


@dataclass(frozen=True, slots=True)
class Dropped:
    """The broker's count of messages that it has dropped since its start, to whomever: their queues were full."""

    num_messages: int


BusEvent = Connected | Disconnected | Received | Cleared | Malformed | Dropped


logger = logging.getLogger(__name__)

_MARK = 50_000
"""Events at which it is tidied: ten per client of the largest fleet measured, about 50 MB of statuses."""


class EventBuffer:
    """Events in order, for one reader."""

    def __init__(self, mark: int = _MARK) -> None:
        self._events: deque[BusEvent] = deque()
        self._news = asyncio.Event()
        self._mark = mark
        self._tidy_at = mark

    def put(self, event: BusEvent) -> None:
        """Add an event; never blocks."""
        self._events.append(event)
        self._news.set()
        if len(self._events) >= self._tidy_at:
            self._tidy()

    async def wait(self) -> None:
        """Wait until there is something to take."""
        if not self._events:
            self._news.clear()
            await self._news.wait()

    def take(self) -> BusEvent | None:
        """Return the oldest event, None when there is none."""
        return self._events.popleft() if self._events else None

    def take_all(self) -> list[BusEvent]:
        """Return everything that is there, oldest first."""
        batch = list(self._events)
        self._events.clear()
        self._tidy_at = self._mark
        return batch

    def _tidy(self) -> None:
        before = len(self._events)
        newest = _newest_stamps(self._events)
        self._events = deque(event for event in self._events if _is_worth_keeping(event, newest))
        self._tidy_at = max(self._mark, 2 * len(self._events))
        facts = {"events": before, "kept": len(self._events)}
        logger.warning("the reader cannot keep up: dropped superseded statuses, metrics and garbage", extra=facts)


def _newest_stamps(events: deque[BusEvent]) -> dict[Topic, Stamp]:
    newest: dict[Topic, Stamp] = {}
    for event in events:
        if isinstance(event, Received) and isinstance(event.message, StatusMessage):
            stamp = stamp_of(event.message)
            newest[event.topic] = max(stamp, newest.get(event.topic, stamp))
    return newest


def _is_worth_keeping(event: BusEvent, newest: dict[Topic, Stamp]) -> bool:
    match event:
        case Malformed():
            return False
        case Received(message=message) if isinstance(message, ClientMetrics | ServerMetrics):
            return False
        case Received(topic, message, _) if isinstance(message, StatusMessage):
            return stamp_of(message) >= newest[topic]
        case _:
            return True


_TOPICS_REMEMBERED = 65_536
"""Parsed topics kept: a fleet uses the same few thousand topics again and again, and parsing is half of decoding."""


DROPPED_TOPIC = "$SYS/broker/publish/messages/dropped"
"""mosquitto's own statistic (mosquitto 2, `man 8 mosquitto`), renewed every `sys_interval` (10 s)."""


_EPOCH_OF_ANY_CLOCK = latest_epoch(0)
"""Up to here no clock has to be asked."""


class Intake:
    """Turns what arrives into events.

    Attributes:
        num_malformed: messages dropped since the start.
    """

    def __init__(self) -> None:
        self.num_malformed = 0
        self._topic_of = lru_cache(maxsize=_TOPICS_REMEMBERED)(parse_topic)

    def read(self, topic_text: str, payload: bytes, *, is_retained: bool) -> BusEvent:
        """Return the event that a message from the broker is."""
        if topic_text == DROPPED_TOPIC and payload.isdigit():
            return Dropped(int(payload))
        try:
            topic = self._topic_of(topic_text)
            if not payload and topic.channel.is_retained:
                return Cleared(topic)
            message = decode(topic, payload)
            if isinstance(message, OwnedStatus) and message.epoch > _EPOCH_OF_ANY_CLOCK and not _is_plausible(message):
                raise MalformedMessageError(
                    topic_text, f"epoch: {message.epoch} is over 100 years from now, in Unix ms"
                )
            return Received(topic, message, is_retained)
        except ProtocolError as error:
            return self._drop(topic_text, error)

    def _drop(self, topic_text: str, error: ProtocolError) -> Malformed:
        self.num_malformed += 1
        # A flood of garbage must not become a flood of log lines: the 1st, 2nd, 4th, 8th, … is a warning.
        is_warning = self.num_malformed & (self.num_malformed - 1) == 0
        logger.log(
            logging.WARNING if is_warning else logging.DEBUG,
            "dropped a message that is not of the protocol",
            extra={"topic": topic_text, "problem": str(error), "dropped_so_far": self.num_malformed},
        )
        return Malformed(topic_text, error)


def _is_plausible(status: OwnedStatus) -> bool:
    return status.epoch <= latest_epoch(time.time_ns() // 1_000_000)
