"""What every part of a leading manager works with; one for each term."""

import asyncio
import time
from dataclasses import dataclass

from fedops_mqtt.bus import Connection
from fedops_mqtt.core.run_member import RunEvent
from fedops_mqtt.manager.api.prometheus import ManagerMetrics
from fedops_mqtt.manager.app_store import AppStore
from fedops_mqtt.manager.bus_reader import BusReader
from fedops_mqtt.manager.events import Events
from fedops_mqtt.manager.journal import Journal
from fedops_mqtt.manager.open_runs import OpenRuns
from fedops_mqtt.manager.tasks import TaskConfig, Tasks
from fedops_mqtt.runtime.settings import ManagerSettings, RunLimits


class Clock:
    """Seconds since 1970 as this process counts them.

    Args:
        not_before: the latest time an earlier process wrote down, s; a wall clock that was set back is overruled.
    """

    def __init__(self, *, not_before: float = 0.0) -> None:
        self._offset = max(time.time(), not_before) - time.monotonic()

    def now(self) -> float:
        """Return the time now, s; never less than any earlier answer."""
        return time.monotonic() + self._offset


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerContext:
    """Shared by the loop, the orders, the upkeep and the API; all of them live in one event loop."""

    settings: ManagerSettings
    term: int
    clock: Clock
    journal: Journal
    tasks: Tasks
    apps: AppStore
    open_runs: OpenRuns
    watch: BusReader
    inbox: RunEventQueue
    connection: Connection
    events: Events
    meters: ManagerMetrics

    def limits(self, task: TaskConfig | None) -> RunLimits:
        """Return a task's limits: the manager's, with what the task says."""
        limits = self.settings.limits
        return limits.model_copy(update=task.limits.said) if task else limits
