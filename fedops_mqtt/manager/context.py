"""What all parts of a leading manager share; made once for each term."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from fedops_mqtt.bus import Connection
from fedops_mqtt.core.limits import RunLimits
from fedops_mqtt.core.run_member import RunEvent
from fedops_mqtt.manager.api.prometheus import ManagerMetrics
from fedops_mqtt.manager.app_store import AppStore
from fedops_mqtt.manager.bus_reader import BusReader
from fedops_mqtt.manager.events import Events
from fedops_mqtt.manager.journal import Journal
from fedops_mqtt.manager.open_runs import OpenRuns
from fedops_mqtt.manager.tasks import TaskConfig, Tasks
from fedops_mqtt.runtime.settings import ManagerSettings


class Clock:
    """Seconds since 1970 as this process counts them.

    Args:
        now: what it shows, s; None: the time of day.
        not_before: the latest time in the journal, s; the clock starts there where `now` is before it.
    """

    def __init__(self, *, now: float | None = None, not_before: float = 0.0) -> None:
        now = max(time.time() if now is None else now, not_before)
        self._offset = now - time.monotonic()
        self.gap_s = now - (not_before or now)
        """Between the latest time in the journal and its start: nobody managed, or the host's clock was set forward."""

    def now(self) -> float:
        """Return the time, s; it never goes back."""
        return time.monotonic() + self._offset


class RunEventQueue:
    """Events of runs, each with its run's id, for the manager's loop; used in one event loop."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, RunEvent]] = []
        self._is_due = asyncio.Event()

    def put(self, run_id: str, event: RunEvent) -> None:
        """Add an event of a run."""
        self._waiting.append((run_id, event))
        self._is_due.set()

    def wake(self) -> None:
        """Let `take` return now."""
        self._is_due.set()

    async def take(self, timeout_s: float) -> list[tuple[str, RunEvent]]:
        """Wait for an event or `wake`, at most `timeout_s`, and take all events."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_due.wait()
        self._is_due.clear()
        taken, self._waiting = self._waiting, []
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerContext:
    """Shared by the loop, the run service, the housekeeping and the API; all of them run in one event loop."""

    settings: ManagerSettings
    term: int
    clock: Clock
    journal: Journal
    tasks: Tasks
    apps: AppStore
    open_runs: OpenRuns
    bus_reader: BusReader
    event_queue: RunEventQueue
    connection: Connection
    events: Events
    meters: ManagerMetrics

    def limits(self, task: TaskConfig) -> RunLimits:
        """Return a task's limits: the manager's, overridden by the task's own."""
        return self.settings.limits.with_set(task.limits)
