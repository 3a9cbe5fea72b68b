"""What every part of a leading manager works with; one for each term."""

from dataclasses import dataclass

from fedops_mqtt.bus import Connection
from fedops_mqtt.manager.api.prometheus import ManagerMetrics
from fedops_mqtt.manager.app_store import AppStore
from fedops_mqtt.manager.bus_reader import BusReader
from fedops_mqtt.manager.clock import Clock
from fedops_mqtt.manager.events import Events
from fedops_mqtt.manager.journal import Journal
from fedops_mqtt.manager.open_runs import OpenRuns
from fedops_mqtt.manager.run_event_queue import RunEventQueue
from fedops_mqtt.manager.tasks import TaskConfig, Tasks
from fedops_mqtt.runtime.settings import ManagerSettings, RunLimits


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
