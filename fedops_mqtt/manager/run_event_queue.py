"""What waits for the manager's next turn: what our own tasks and the API report; the bus only wakes it."""

import asyncio

from fedops_mqtt.core.run_events import RunEvent

Report = tuple[str, RunEvent]
"""A run's id and what happened to it."""


class RunEventQueue:
    """Filled from the event loop, emptied by one reader."""

    def __init__(self) -> None:
        self._reports: list[Report] = []
        self._news = asyncio.Event()

    def put(self, run_id: str, event: RunEvent) -> None:
        """Add something that happened to a run."""
        self._reports.append((run_id, event))
        self._news.set()

    def wake(self) -> None:
        """Have the reader take a turn now."""
        self._news.set()

    async def take(self, timeout_s: float) -> list[Report]:
        """Wait for something, at most `timeout_s`, then take everything."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
        reports, self._reports = self._reports, []
        return reports
