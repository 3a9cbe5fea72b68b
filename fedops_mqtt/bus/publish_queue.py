"""Metrics on their way to the broker: kept while it is away, published in order when it is back."""

import asyncio
import logging
from collections import deque

from fedops_mqtt.bus.connection import Connection, Publication
from fedops_mqtt.bus.errors import BusError, NotConnectedError
from fedops_mqtt.bus.events import BusEvent, Connected
from fedops_mqtt.protocol import ProtocolError

logger = logging.getLogger(__name__)

_MAX_WAITING = 1000
"""Messages kept while the broker is slow or away; the oldest go first."""


class PublishQueue:
    """Publishes one message after the other; `run` it beside the connection. For one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Publication] = deque(maxlen=_MAX_WAITING)
        self._news = asyncio.Event()
        self._is_empty = asyncio.Event()

    def put(self, publication: Publication) -> None:
        """Publish this soon."""
        self._waiting.append(publication)
        self._wake()

    def take(self, event: BusEvent) -> None:
        """Try again once the broker is back; give it to the connection as an observer."""
        if isinstance(event, Connected):
            self._wake()

    async def wait_empty(self) -> None:
        """Wait until everything that was put so far is published or given up."""
        self._wake()
        await self._is_empty.wait()

    async def run(self, bus: Connection) -> None:
        """Publish what there is, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self.flush(bus)

    async def flush(self, bus: Connection) -> None:
        """Publish what is there now; where the broker is away, the rest waits for it."""
        while self._waiting:
            oldest = self._waiting[0]
            try:
                await bus.publish(oldest.topic, oldest.message)
            except NotConnectedError:
                return
            except (BusError, ProtocolError) as error:
                logger.warning("metrics are given up", extra={"problem": str(error)})
            if self._waiting and self._waiting[0] is oldest:  # a full queue has dropped it meanwhile
                self._waiting.popleft()
        self._is_empty.set()

    def _wake(self) -> None:
        self._is_empty.clear()
        self._news.set()
