"""Who is here: counts and one table of all clients. Rows travel once, then only what changes, a few times a second."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import events, ui

from fedops_mqtt.dashboard.parts import hint
from fedops_mqtt.dashboard.view import TICK_S, View, subscription
from fedops_mqtt.dashboard.words import Word, row_of
from fedops_mqtt.manager.api_models import ClientRecord
from fedops_mqtt.manager.events import News, NewsKind

ALL = "All"
_ROWS_A_MESSAGE = 2000
_ROW_PX = 38
_HEAD_PX = _ROW_PX + 18
"""The head and a scroll bar."""
"""A message on the socket stays below a megabyte."""

_LINK = """(p) => { if (!p.data) return ''; const a = document.createElement('a');
  a.href = '/clients/' + encodeURIComponent(p.data.task) + '/' + p.data.mac.replaceAll(':', '-');
  a.textContent = p.value; return a; }"""
_CHIP = """(p) => { const s = document.createElement('span');
  s.className = 'fed-chip fed-' + String(p.value).toLowerCase(); s.textContent = p.value; return s; }"""
_SINCE = """(p) => { if (!p.value) return ''; const s = Math.max(0, (Date.now() - Date.parse(p.value)) / 1000);
  return s < 60 ? Math.floor(s) + ' s' : s < 3600 ? Math.floor(s / 60) + ' min' :
    s < 86400 ? Math.floor(s / 3600) + ' h ' + Math.floor(s % 3600 / 60) + ' min' : Math.floor(s / 86400) + ' d'; }"""
_COLUMNS: list[dict[str, Any]] = [
    {"field": "name", "headerName": "Name", "width": 150, ":cellRenderer": _LINK, "pinned": "left"},
    {"field": "state", "headerName": "Status", "width": 120, ":cellRenderer": _CHIP},
    {"field": "why", "headerName": "Why", "flex": 3, "minWidth": 110, "tooltipField": "why"},
    {"field": "since", "headerName": "Since", "width": 95, ":valueFormatter": _SINCE},
    {"field": "task", "headerName": "Task", "flex": 1, "minWidth": 80},
    {"field": "phase", "headerName": "Phase", "width": 110},
    {"field": "round", "headerName": "Round", "width": 80},
    {"field": "last", "headerName": "Last run", "width": 100},
    {"field": "load", "headerName": "Load", "width": 178},
    {"field": "version", "headerName": "Version", "width": 90},
    {"field": "mac", "headerName": "MAC", "width": 155},
]
_ON_A_PHONE = ["since", "task", "phase", "last", "load", "version", "mac"]
_PHONE = """(p) => { if (window.innerWidth < 640) { p.api.setColumnsPinned(['name'], null);
  p.api.setColumnsVisible(%s, false); } }"""
_OPTIONS: dict[str, Any] = {
    "columnDefs": _COLUMNS,
    "rowData": [],
    ":getRowId": "(p) => p.data.id",
    "defaultColDef": {"sortable": True, "filter": True, "resizable": True, "suppressHeaderFilterButton": True},
    "rowHeight": _ROW_PX,
    "headerHeight": _ROW_PX,
    "animateRows": False,
    "enableCellTextSelection": True,
    "ensureDomOrder": True,
    "suppressNoRowsOverlay": True,
    "tooltipShowDelay": 300,
    ":onGridReady": _PHONE % _ON_A_PHONE,
}


def build(view: View) -> Callable[[], Awaitable[None]]:
    """Return the page's function."""

    async def fleet() -> None:
        with view.frame("Fleet", here="/"):
            await FleetTable(view).draw()

    return fleet


class FleetTable:
    """One visitor's table."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._rows: dict[str, dict[str, Any]] = {}
        self._task, self._word = ALL, ALL
        self._buttons: dict[str, ui.element] = {}
        self._numbers: dict[str, ui.label] = {}

    async def draw(self) -> None:
        """Draw, fill and keep up."""
        self._news = subscription(self._view)
        self._rows = {row["id"]: row for row in self._all_rows()}
        with ui.element("div").classes("fed-counts").props('role="group" aria-label="Clients by status"'):
            for word in (ALL, *(word.value for word in Word)):
                self._count(word)
        with ui.element("div").classes("fed-row"):
            search = ui.input(label="Search", placeholder="name, MAC, reason …").props("dense outlined clearable")
            search.on_value_change(self._search)
            self._tasks = ui.select([ALL], value=ALL, label="Task").props("dense outlined options-dense")
            self._tasks.style("min-width:9rem").on_value_change(self._choose_task)
        self._empty = ui.element("div")
        with self._empty:
            broker = self._view.desk.settings.broker.rpartition("@")[2].removeprefix("mqtt://")
            hint(
                "No clients yet. On a device, this adds one:",
                f"fedops-mqtt client --task-id TASK --app MODULE:ATTRIBUTE --broker mqtt://{broker}",
            )
        with ui.element("div").classes("fed-box") as self._box:  # what changes the grid's own element makes it anew
            self._grid = ui.aggrid(_OPTIONS, auto_size_columns=False).classes("fed-grid")
            self._grid.props('aria-label="Clients"')
        self._show_counts()
        await ui.context.client.connected(timeout=30)
        self._send({"add": list(self._rows.values())})
        ui.timer(TICK_S, self._keep_up)

    def _all_rows(self) -> list[dict[str, Any]]:
        views = sorted(self._view.desk.watch.fleet.clients.items())
        loads = self._view.loads
        return [row_of(ClientRecord.of(view).model_dump(mode="json"), loads.get(key)) for key, view in views]

    def _keep_up(self) -> None:
        news = self._news.take()
        if not news:
            return
        if any(each.kind is NewsKind.LAGGED for each in news):
            fresh = {row["id"]: row for row in self._all_rows()}
        else:
            fresh = self._changed(news)
        added = [row for key, row in fresh.items() if key not in self._rows]
        changed = [row for key, row in fresh.items() if key in self._rows and row != self._rows[key]]
        gone = [f"{each.task_id}/{each.client_mac}" for each in news if each.kind is NewsKind.FORGOTTEN]
        removed = [self._rows.pop(key) for key in gone if key in self._rows]
        self._rows.update({row["id"]: row for row in (*added, *changed)})
        if added or changed or removed:
            self._send({"add": added, "update": changed, "remove": [{"id": row["id"]} for row in removed]})
            self._show_counts()

    def _changed(self, news: list[News]) -> dict[str, dict[str, Any]]:
        fresh: dict[str, dict[str, Any]] = {}
        for each in news:
            key = (each.task_id or "", each.client_mac or "")
            load = self._view.loads.get(key)
            if each.kind is NewsKind.CLIENT:
                row = row_of(each.record, load)
                fresh[row["id"]] = row
            elif each.kind is NewsKind.METRICS and (known := self._rows.get("/".join(key))):
                view = self._view.desk.watch.fleet.client(*key)
                if view is not None:
                    fresh[known["id"]] = row_of(ClientRecord.of(view).model_dump(mode="json"), load)
        return fresh

    def _send(self, change: dict[str, list[dict[str, Any]]]) -> None:
        added = change.get("add", [])
        for start in range(0, max(1, len(added)), _ROWS_A_MESSAGE):
            part = {**change, "add": added[start : start + _ROWS_A_MESSAGE]}
            self._grid.run_grid_method("applyTransaction", part)
            change = {}

    def _show_counts(self) -> None:
        rows = [row for row in self._rows.values() if self._task in (ALL, row["task"])]
        counts = Counter(row["state"] for row in rows)
        shown = (ALL, len(rows)), *((word.value, counts[word]) for word in Word)
        for word, count in shown:
            self._numbers[word].set_text(str(count))
            self._buttons[word].props(f'aria-pressed="{str(word == self._word).lower()}"')
        self._buttons[Word.UNCONFIRMED.value].set_visibility(bool(counts[Word.UNCONFIRMED]))
        tasks = [ALL, *sorted({row["task"] for row in self._rows.values()})]
        if tasks != self._tasks.options:
            self._tasks.set_options(tasks)
        self._empty.set_visibility(not self._rows)
        self._box.set_visibility(bool(self._rows))
        self._box.style(f"height:{_HEAD_PX + _ROW_PX * len(self._rows)}px")

    def _count(self, word: str) -> None:
        self._buttons[word] = ui.element("button").classes("fed-count")
        with self._buttons[word].on("click", lambda: self._choose_word(word)):
            self._numbers[word] = ui.label("0").classes("fed-number").props(f'data-count="{word}"')
            ui.label(word).classes(f"fed-{word.lower()}")

    def _search(self, event: events.ValueChangeEventArguments[Any]) -> None:
        self._grid.run_grid_method("setGridOption", "quickFilterText", event.value or "")

    def _choose_task(self, event: events.ValueChangeEventArguments[Any]) -> None:
        self._task = event.value
        self._filter()

    def _choose_word(self, word: str) -> None:
        self._word = word
        self._filter()

    def _filter(self) -> None:
        wanted = {"task": self._task, "state": self._word}
        model = {name: {"type": "equals", "filter": value} for name, value in wanted.items() if value != ALL}
        self._grid.run_grid_method("setFilterModel", model)
        self._show_counts()
