"""What waits for the manager's next turn: words from the bus, and what our own tasks and the API report."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedops_mqtt.bus import BusEvent
from fedops_mqtt.core.run_events import RunEvent


@dataclass(kw_only=True)
class Letters:
    """Everything that came since the last turn."""

    bus: list[BusEvent] = field(default_factory=list)
    reports: list[tuple[str, RunEvent]] = field(default_factory=list)


class Inbox:
    """Filled from the event loop, emptied by one reader."""

    def __init__(self) -> None:
        self._letters = Letters()
        self._news = asyncio.Event()

    def put_bus(self, events: Sequence[BusEvent]) -> None:
        """Add what the bus brought."""
        self._letters.bus.extend(events)
        self._news.set()

    def put(self, run_id: str, event: RunEvent) -> None:
        """Add something that happened to a run."""
        self._letters.reports.append((run_id, event))
        self._news.set()

    def wake(self) -> None:
        """Have the reader take a turn now."""
        self._news.set()

    async def take(self, timeout_s: float) -> Letters:
        """Wait for something, at most `timeout_s`, then take everything."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
        letters, self._letters = self._letters, Letters()
        return letters
