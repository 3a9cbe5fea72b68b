"""The fleet: counts and one table of all clients. Rows are sent once, then only changes, a few times a second."""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nicegui import events, ui

from fedops_mqtt.dashboard.parts import hint
from fedops_mqtt.dashboard.texts import Label, Row
from fedops_mqtt.dashboard.view import TICK_S, PageView
from fedops_mqtt.manager.events import ClientKey

ALL = "All"
ROW_PX = 38
HEAD_PX = ROW_PX + 18
"""The head and a scroll bar."""
_ADD = """const [names, rows] = JSON.parse(%s);
  const unpacked = rows.map((row) => Object.fromEntries(names.map((name, index) => [name, row[index]])));
  getElement(%d).api.applyTransaction({add: unpacked});"""
"""Adds many rows: as JSON in a string, which a browser reads several times faster than the same as a program."""

_LINK = """(p) => { if (!p.data) return ''; const a = document.createElement('a');
  a.href = (p.data.page || '') + '/clients/' + encodeURIComponent(p.data.task) + '/' + p.data.mac.replaceAll(':', '-');
  a.textContent = p.value; return a; }"""
_CHIP = """(p) => { const s = document.createElement('span');
  s.className = 'fed-chip fed-' + String(p.value).toLowerCase(); s.textContent = p.value; return s; }"""
_SINCE = """(p) => { if (!p.value) return ''; const s = Math.max(0, (Date.now() - Date.parse(p.value)) / 1000);
  return s < 60 ? Math.floor(s) + ' s' : s < 3600 ? Math.floor(s / 60) + ' min' :
    s < 86400 ? Math.floor(s / 3600) + ' h ' + Math.floor(s % 3600 / 60) + ' min' : Math.floor(s / 86400) + ' d'; }"""
_COLUMNS: list[dict[str, Any]] = [
    {"field": "name", "headerName": "Name", "width": 145, ":cellRenderer": _LINK, "pinned": "left"},
    {"field": "status", "headerName": "Status", "width": 134, ":cellRenderer": _CHIP},
    {"field": "reason", "headerName": "Reason", "flex": 3, "minWidth": 80, "tooltipField": "reason"},
    {"field": "since", "headerName": "Since", "width": 90, ":valueFormatter": _SINCE},
    {"field": "task", "headerName": "Task", "flex": 1, "minWidth": 80},
    {"field": "phase", "headerName": "Phase", "width": 105},
    {"field": "round", "headerName": "Round", "width": 75},
    {"field": "last", "headerName": "Last run", "width": 95},
    {"field": "load", "headerName": "Load", "width": 180},
    {"field": "version", "headerName": "Version", "width": 82},
    {"field": "mac", "headerName": "MAC", "width": 155},
    {"field": "id", "hide": True, "sort": "asc"},  # so that later clients are sorted in at once
]
_ON_A_PHONE = ["since", "task", "phase", "round", "last", "load", "version", "mac"]
_PHONE = """(p) => { if (window.innerWidth < 640) { p.api.setColumnsPinned(['name'], null);
  p.api.setColumnsVisible(%s, false); } }"""
_NO_MATCH = """(p) => document.body.classList.toggle('fed-none',
  p.api.isAnyFilterPresent() && p.api.getDisplayedRowCount() === 0)"""
_OPTIONS: dict[str, Any] = {
    "rowData": [],
    ":getRowId": "(p) => p.data.id",
    "defaultColDef": {"sortable": True, "filter": True, "resizable": True, "suppressHeaderFilterButton": True},
    "rowHeight": ROW_PX,
    "headerHeight": ROW_PX,
    "animateRows": False,
    "enableCellTextSelection": True,
    "ensureDomOrder": True,
    "suppressNoRowsOverlay": True,
    "tooltipShowDelay": 300,
    ":onGridReady": _PHONE % _ON_A_PHONE,
    ":onModelUpdated": _NO_MATCH,
}


def client_columns(*, has_sites: bool) -> list[dict[str, Any]]:
    """Return the columns of a table of clients; of several sites: with the site, without loads, which only it has."""
    if not has_sites:
        return _COLUMNS
    site = {"field": "site", "headerName": "Site", "width": 110}
    return [_COLUMNS[0], site, *(column for column in _COLUMNS[1:] if column["field"] != "load")]


def grid_options(columns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the options of a table of clients."""
    return {**_OPTIONS, "columnDefs": columns}


def build(view: PageView) -> Callable[[], Awaitable[None]]:
    """Return the page's function."""

    async def fleet() -> None:
        with view.frame("Fleet", here="/"):
            await FleetTable(view).draw()

    return fleet


class FleetTable:
    """One visitor's table."""

    def __init__(self, view: PageView) -> None:
        self._view = view
        self._shown: Mapping[ClientKey, Row] = {}
        self._task, self._status = ALL, ALL
        self._buttons: dict[str, ui.element] = {}
        self._numbers: dict[str, ui.label] = {}

    async def draw(self) -> None:
        """Draw the page and update it while it is open."""
        with ui.element("div").classes("fed-counts").props('role="group" aria-label="Clients by status"'):
            for status in (ALL, *(label.value for label in Label)):
                self._count(status)
        with ui.element("div").classes("fed-row"):
            search = ui.input(label="Search", placeholder="name, MAC, reason …").props("dense outlined clearable")
            search.on_value_change(self._search)
            self._tasks = ui.select([ALL], value=ALL, label="Task").props("dense outlined options-dense")
            self._tasks.style("min-width:9rem").on_value_change(self._choose_task)
        self._empty = ui.element("div")
        with self._empty:
            hint(
                "No clients yet. On a device, this adds one:",
                f"fedops-mqtt client --task-id TASK --app MODULE:ATTRIBUTE --broker {self._view.manager.broker}",
            )
        with ui.element("div").classes("fed-box") as self._box:  # what changes the grid's own element makes it anew
            self._grid = ui.aggrid(grid_options(client_columns(has_sites=False)), auto_size_columns=False).classes(
                "fed-grid"
            )
            self._grid.props('aria-label="Clients"')
        ui.label("No client is like this: change the search, the status or the task above.").classes("fed-no-match")
        self._shown = dict(sorted(self._view.rows.current().items()))
        self._show_counts()
        await ui.context.client.connected(timeout=30)
        self._add(list(self._shown.values()))
        ui.timer(TICK_S, self._update)

    def _update(self) -> None:
        known, now = self._shown, self._view.rows.current()
        fresh = [(key, row) for key, row in now.items() if known.get(key) is not row]
        removed = [{"id": row["id"]} for key, row in known.items() if key not in now]
        if not fresh and not removed:
            return
        self._shown = dict(now)
        self._add([row for key, row in fresh if key not in known])
        changed = [row for key, row in fresh if key in known]
        if changed or removed:
            self._grid.run_grid_method("applyTransaction", {"update": changed, "remove": removed})
        self._show_counts()

    def _add(self, rows: list[Row]) -> None:
        if rows:
            packed = json.dumps([list(rows[0]), [list(row.values()) for row in rows]], separators=(",", ":"))
            ui.run_javascript(_ADD % (json.dumps(packed), self._grid.id))

    def _show_counts(self) -> None:
        rows = [row for row in self._shown.values() if self._task in (ALL, row["task"])]
        counts = Counter(row["status"] for row in rows)
        shown = (ALL, len(rows)), *((label.value, counts[label]) for label in Label)
        for status, count in shown:
            self._numbers[status].set_text(str(count))
            self._buttons[status].props(f'aria-pressed="{str(status == self._status).lower()}"')
        self._buttons[Label.UNCONFIRMED.value].set_visibility(bool(counts[Label.UNCONFIRMED]))
        tasks = [ALL, *sorted({row["task"] for row in self._shown.values()})]
        if tasks != self._tasks.options:
            self._tasks.set_options(tasks)
        self._empty.set_visibility(not self._shown)
        self._box.set_visibility(bool(self._shown))
        self._box.style(f"height:{HEAD_PX + ROW_PX * len(self._shown)}px")

    def _count(self, status: str) -> None:
        self._buttons[status] = ui.element("button").classes("fed-count")
        with self._buttons[status].on("click", lambda: self._choose_status(status)):
            self._numbers[status] = ui.label("0").classes("fed-number").props(f'data-count="{status}"')
            ui.label(status).classes(f"fed-{status.lower()}")

    def _search(self, event: events.ValueChangeEventArguments[Any]) -> None:
        self._grid.run_grid_method("setGridOption", "quickFilterText", event.value or "")

    def _choose_task(self, event: events.ValueChangeEventArguments[Any]) -> None:
        self._task = event.value
        self._filter()

    def _choose_status(self, status: str) -> None:
        self._status = status
        self._filter()

    def _filter(self) -> None:
        wanted = {"task": self._task, "status": self._status}
        model = {name: {"type": "equals", "filter": value} for name, value in wanted.items() if value != ALL}
        self._grid.run_grid_method("setFilterModel", model)
        self._show_counts()
