"""The rows of the fleet's table, made when a page asks and kept while their client is as it was; no page is needed."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedops_mqtt.core.fleet import ClientView, Fleet
from fedops_mqtt.dashboard.texts import Row, readable, row_of
from fedops_mqtt.manager.api.models import ClientRecord
from fedops_mqtt.manager.events import ChangeTopic, ClientKey, FleetChange, Subscription
from fedops_mqtt.protocol import MetricsKind

LOAD_TOPICS = (ChangeTopic.METRICS, ChangeTopic.FORGOTTEN)
"""The changes from which loads are read; everything else is read from the fleet when a page is open."""

_IDLE_S = 3600.0


class FleetRows:
    """The fleet's clients as rows; `changes` is a subscription to `LOAD_TOPICS` that only this class reads."""

    def __init__(self, fleet: Fleet, changes: Subscription) -> None:
        self._fleet = fleet
        self._changes = changes
        self._rows: dict[ClientKey, Row] = {}
        self._made_of: dict[ClientKey, tuple[ClientView, Any]] = {}
        self._loads: dict[ClientKey, Mapping[str, Any]] = {}

    async def follow(self) -> None:
        """Read the clients' loads, for ever, also while no page is open."""
        while True:
            self._note_loads(await self._changes.wait(_IDLE_S))

    def current(self) -> Mapping[ClientKey, Row]:
        """Return the rows as they are now."""
        self._note_loads(self._changes.take())
        known = self._fleet.clients
        for key in self._rows.keys() - known.keys():
            del self._rows[key], self._made_of[key]
        for key, view in known.items():
            load = self._loads.get(key)
            made_of = self._made_of.get(key)
            if made_of is None or made_of[0] is not view or made_of[1] is not load:
                self._made_of[key] = view, load
                row = row_of(ClientRecord.of(view), load)
                if row != self._rows.get(key):
                    self._rows[key] = row
        return self._rows

    def of_task(self, task_id: str) -> list[Row]:
        """Return the rows of one task's clients, by MAC."""
        rows = self.current()
        return [rows[key] for key in sorted(key for key in rows if key[0] == task_id)]

    def name_of(self, task_id: str, client_mac: str) -> str:
        """Return a client's name for people, or its MAC; makes no row."""
        view = self._fleet.client(task_id, client_mac)
        return readable((view.status.client_name if view else "") or client_mac)

    def _note_loads(self, changes: Iterable[FleetChange]) -> None:
        for each in changes:
            key = (each.task_id or "", each.client_mac or "")
            if each.kind is ChangeTopic.FORGOTTEN:
                self._loads.pop(key, None)
            elif each.kind is ChangeTopic.METRICS and each.record["kind"] == MetricsKind.SYSTEM:
                self._loads[key] = each.record["values"]
