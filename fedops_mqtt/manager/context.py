"""What every part of a leading manager works with; one for each term."""

from dataclasses import dataclass

from fedops_mqtt.bus import Connection
from fedops_mqtt.manager.api.prometheus import Meters
from fedops_mqtt.manager.bus_reader import Watch
from fedops_mqtt.manager.clock import Clock
from fedops_mqtt.manager.events import Events
from fedops_mqtt.manager.journal import Journal
from fedops_mqtt.manager.open_runs import Ledger
from fedops_mqtt.manager.run_event_queue import Inbox
from fedops_mqtt.manager.tasks import TaskConfig, Tasks
from fedops_mqtt.runtime.settings import ManagerSettings, RunLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Shared by the loop, the orders, the upkeep and the API; all of them live in one event loop."""

    settings: ManagerSettings
    term: int
    clock: Clock
    journal: Journal
    tasks: Tasks
    ledger: Ledger
    watch: Watch
    inbox: Inbox
    connection: Connection
    events: Events
    meters: Meters

    def limits(self, task: TaskConfig | None) -> RunLimits:
        """Return a task's limits: the manager's, with what the task says."""
        limits = self.settings.limits
        return limits.model_copy(update=task.limits.said) if task else limits
