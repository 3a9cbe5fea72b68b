"""What the manager says to clients, many at a time: thousands of triggers must not wait for each other.

What cannot be said is logged and forgotten: the plan says it again as long as it is still wanted.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fedops_mqtt.bus import BusError, Connection
from fedops_mqtt.protocol import ProtocolError, StartTrigger, StopTrigger, topics
from fedops_mqtt.runtime.background import bare_error

logger = logging.getLogger(__name__)

NUM_WORKERS = 64
"""Publishes under way at a time; the connection allows as many (brokers get no faster beyond about 100)."""


class TriggerPublisher:
    """Says triggers over a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unsaid: asyncio.Queue[StartTrigger | StopTrigger] = asyncio.Queue()

    @asynccontextmanager
    async def speaking(self) -> AsyncIterator[None]:
        """Publish what is said while the block runs; what is unsaid at its end stays unsaid."""
        with bare_error():
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(self._work(), name=f"speak-{number}") for number in range(NUM_WORKERS)]
                try:
                    yield
                finally:
                    for worker in workers:
                        worker.cancel()

    def say(self, message: StartTrigger | StopTrigger) -> None:
        """Publish a trigger soon."""
        self._unsaid.put_nowait(message)

    async def _work(self) -> None:
        while True:
            await self._publish(await self._unsaid.get())

    async def _publish(self, message: StartTrigger | StopTrigger) -> None:
        make_topic = topics.client_start if isinstance(message, StartTrigger) else topics.client_stop
        facts = {"run_id": message.run_id, "client_mac": message.client_mac, "attempt": message.attempt}
        try:
            await self._connection.publish(make_topic(message.task_id, message.client_mac), message)
            logger.debug("published a trigger", extra={"message_kind": type(message).__name__, **facts})
        except (BusError, ProtocolError) as error:
            logger.warning("could not publish a trigger", extra={"problem": str(error), **facts})
