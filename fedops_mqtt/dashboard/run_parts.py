"""The parts of a run's page that grow with the run: clients, their lanes, history. Only what has changed is sent."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

from fedops_mqtt.dashboard import charts
from fedops_mqtt.dashboard.parts import cells, chip, clear_section, set_chart, set_chip, table
from fedops_mqtt.dashboard.texts import clock, describe_event, readable
from fedops_mqtt.manager.api.models import MemberRecord

MAX_SHOWN_CLIENTS = 200
MAX_SHOWN_EVENTS = 300
MAX_ADDED = 10_000
"""Bars that are added to a chart; with more it is drawn anew, without the oldest ones."""

_APPEND = """
const chart = getElement(%d)?.chart, added = %s;
chart?.setOption({series: chart.getOption().series.map((each, index) => ({data: each.data.concat(added[index])}))});
"""

Record = Mapping[str, Any]
NameOf = Callable[[str], str]


class MemberTable:
    """The first of a run's clients, a row each; a row is sent when its client has changed."""

    def __init__(self, card: ui.element, task_id: str, name_of: NameOf) -> None:
        self._card = card
        self._task_id = task_id
        self._name_of = name_of
        self._rows: dict[str, _MemberRow] = {}
        self._num_drawn: int | None = None

    def show(self, members: Mapping[str, MemberRecord]) -> None:
        """Show how they are now."""
        if len(members) != self._num_drawn or not self._rows.keys() <= members.keys():
            self._draw(members)
            return
        for mac, row in self._rows.items():
            row.show(members[mac], self._name_of(mac))

    def _draw(self, members: Mapping[str, MemberRecord]) -> None:
        self._num_drawn, self._rows = len(members), {}
        clear_section(self._card)
        with self._card:
            if not members:
                ui.label("None yet: as soon as enough clients of the task are idle, they are chosen.")
                return
            with table("Client", "Status", "Round", "Attempts", "Trigger to training"):
                for mac in list(members)[:MAX_SHOWN_CLIENTS]:
                    path = f"/clients/{self._task_id}/{mac.replace(':', '-')}"
                    self._rows[mac] = _MemberRow(members[mac], self._name_of(mac), path)
            if len(members) > MAX_SHOWN_CLIENTS:
                ui.label(f"… and {len(members) - MAX_SHOWN_CLIENTS} more; clients.csv has them all").classes("fed-soft")


class _MemberRow:
    def __init__(self, member: MemberRecord, name: str, path: str) -> None:
        self._member = member
        with ui.element("tr"):
            with ui.element("td"):
                self._link = ui.link(name, path)
            with ui.element("td"):
                self._chip = chip(member.status)
            self._cells = cells(*_cells_of(member))

    def show(self, member: MemberRecord, name: str) -> None:
        if self._link.text != name:
            self._link.set_text(name)
        if member == self._member:
            return
        self._member = member
        set_chip(self._chip, member.status)
        for label, value in zip(self._cells, _cells_of(member), strict=True):
            if label.text != (text := readable(value)):
                label.set_text(text)


def _cells_of(member: MemberRecord) -> tuple[int, int, str]:
    delay = member.trigger_to_training_ms
    return member.round, member.attempt, f"{delay / 1000:.2f} s" if delay else "–"


class HistoryTable:
    """The newest events of a run, the newest first; new ones are put on top."""

    def __init__(self, card: ui.element, name_of: NameOf) -> None:
        self._name_of = name_of
        with card:
            self._body = table("When (UTC)", "Who", "What")

    def add(self, events: Sequence[Record]) -> None:
        """Show further events, the oldest of them first."""
        for event in events[-MAX_SHOWN_EVENTS:]:
            with self._body, ui.element("tr").classes("fed-history") as row:
                cells(
                    clock(event["at"])[11:],
                    self._name_of(event["client_mac"] or "manager"),
                    words=describe_event(event),
                )
            row.move(target_index=0)
        for row in self._body.default_slot.children[MAX_SHOWN_EVENTS:]:
            row.delete()


class LaneChart:
    """What each of a run's clients did when; new bars are added to those that the browser has."""

    def __init__(self, chart: ui.echart, name_of: NameOf) -> None:
        self._chart = chart
        self._name_of = name_of
        self._num_added = 0
        self.macs: list[str] | None = None
        """Whose lanes are drawn, the topmost first; None: nothing is drawn yet."""

    @property
    def is_full(self) -> bool:
        """True when it is time to draw it without its oldest bars."""
        return self._num_added > MAX_ADDED

    def draw(self, macs: list[str], metrics: Sequence[Record], events: Sequence[Record]) -> None:
        """Draw the lanes of these clients."""
        self.macs, self._num_added = macs, 0
        bars, marks = charts.lane_data(macs, metrics, events)
        self._chart.style(f"height:{40 + 30 * max(1, len(macs))}px")
        set_chart(self._chart, charts.lanes([self._name_of(mac) for mac in macs], bars, marks))

    def add(self, metrics: Sequence[Record], events: Sequence[Record]) -> None:
        """Add what came since."""
        added = charts.lane_data(self.macs or [], metrics, events)
        if not any(added):
            return
        self._num_added += sum(map(len, added))
        # The chart's options here stay as they were drawn: NiceGUI would send them whole if they changed.
        self._chart.client.run_javascript(_APPEND % (self._chart.id, json.dumps(added)))
