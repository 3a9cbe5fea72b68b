"""Numbers on their way to the bus: in order, bounded, and as far as the bound allows kept while the broker is away."""

import asyncio
import logging
from collections import deque

from fedops_mqtt.bus import BusError, Connection, NotConnectedError
from fedops_mqtt.protocol import ClientMetrics, ProtocolError, topics

logger = logging.getLogger(__name__)

_MAX_WAITING = 1000
"""Messages kept while the broker is slow or away; the oldest go first."""


class MetricsSender:
    """Takes metrics at any time and publishes them one after the other."""

    def __init__(self) -> None:
        self._waiting: deque[ClientMetrics] = deque(maxlen=_MAX_WAITING)
        self._news = asyncio.Event()

    def put(self, metrics: ClientMetrics) -> None:
        """Send these soon."""
        self._waiting.append(metrics)
        self._news.set()

    def wake(self) -> None:
        """Say that the broker is back."""
        self._news.set()

    async def run(self, bus: Connection) -> None:
        """Publish what there is, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self.flush(bus)

    async def flush(self, bus: Connection) -> None:
        """Publish what is there now; stops where the broker is away, the rest waits for `wake`."""
        while self._waiting:
            metrics = self._waiting[0]
            try:
                await bus.publish(topics.client_metrics(metrics.task_id, metrics.client_mac), metrics)
            except NotConnectedError:
                return
            except (BusError, ProtocolError) as error:
                logger.warning("metrics were not taken", extra={"problem": str(error)})
            if self._waiting and self._waiting[0] is metrics:
                self._waiting.popleft()
