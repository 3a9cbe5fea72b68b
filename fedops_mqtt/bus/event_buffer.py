"""What has happened and nobody has read yet; bounded by what it means, not by throwing the truth away.

A reader that is slow, or a sender that floods, must not fill the memory: past the mark only what is still true stays.
A status is a whole snapshot, so the newest one of a topic says everything; numbers and garbage can be missed.
"""

import asyncio
import logging
from collections import deque

from fedops_mqtt.bus.events import BusEvent, Malformed, Received
from fedops_mqtt.core.fencing import Stamp, stamp_of
from fedops_mqtt.protocol import ClientMetrics, ServerMetrics, StatusMessage, Topic

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
