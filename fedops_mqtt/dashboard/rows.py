"""The rows of the fleet's table, one set for all visitors.

A row is made when somebody looks, and again only when its client has changed since: the same object is the same row.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from fedops_mqtt.core.fleet import ClientView
from fedops_mqtt.dashboard.texts import row_of
from fedops_mqtt.manager.api.models import ClientRecord
from fedops_mqtt.manager.bus_reader import BusReader
from fedops_mqtt.manager.events import ChangeTopic, ClientKey, FleetChange, Subscription
from fedops_mqtt.protocol import MetricsKind

Row = Mapping[str, Any]

TOLD = (ChangeTopic.METRICS, ChangeTopic.FORGOTTEN)
"""The news that loads are read from; who is how is seen by looking, and costs nothing while nobody looks."""

_IDLE_S = 3600.0


class FleetRows:
    """Who is in the fleet, as rows; `news` (of the kinds `TOLD`) are its own from now on."""

    def __init__(self, watch: BusReader, news: Subscription) -> None:
        self._watch = watch
        self._news = news
        self._rows: dict[ClientKey, Row] = {}
        self._made_of: dict[ClientKey, tuple[ClientView, Any]] = {}
        self._loads: dict[ClientKey, Mapping[str, Any]] = {}

    async def follow(self) -> None:
        """Take in the loads that clients tell, for ever: also while nobody looks."""
        while True:
            self._note(await self._news.wait(_IDLE_S))

    def current(self) -> Mapping[ClientKey, Row]:
        """Return the rows as they are now."""
        self._note(self._news.take())
        known = self._watch.fleet.clients
        for key in self._rows.keys() - known.keys():
            del self._rows[key], self._made_of[key]
        for key, view in known.items():
            load = self._loads.get(key)
            made_of = self._made_of.get(key)
            if made_of is None or made_of[0] is not view or made_of[1] is not load:
                self._make(key, view, load)
        return self._rows

    def _make(self, key: ClientKey, view: ClientView, load: Mapping[str, Any] | None) -> None:
        self._made_of[key] = view, load
        row = row_of(ClientRecord.of(view).model_dump(mode="json"), load)
        if row != self._rows.get(key):
            self._rows[key] = row

    def _note(self, news: Iterable[FleetChange]) -> None:
        for each in news:
            key = (each.task_id or "", each.client_mac or "")
            if each.kind is ChangeTopic.FORGOTTEN:
                self._loads.pop(key, None)
            elif each.kind is ChangeTopic.METRICS and each.record["kind"] == MetricsKind.SYSTEM:
                self._loads[key] = each.record["values"]
