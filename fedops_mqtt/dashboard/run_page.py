"""One run: its status, metrics by round, what every client did when, failures with their reasons, its models."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from nicegui import ui

from fedops_mqtt.core.run import ACCURACY, LOSS, measure
from fedops_mqtt.dashboard import charts
from fedops_mqtt.dashboard.parts import (
    cells,
    chip,
    clear_section,
    draw_chart,
    facts,
    hint,
    section,
    set_chart,
    stop_button,
    table,
)
from fedops_mqtt.dashboard.run_parts import HistoryTable, LaneChart, MemberTable
from fedops_mqtt.dashboard.texts import (
    clock,
    duration,
    number,
    readable,
    run_label,
    short_reason,
    size,
)
from fedops_mqtt.dashboard.view import PageView, subscription
from fedops_mqtt.manager.api.history import MAX_HISTORY
from fedops_mqtt.manager.api.models import ModelRecord, RunRecord
from fedops_mqtt.manager.errors import UnknownRunError
from fedops_mqtt.manager.events import ChangeTopic
from fedops_mqtt.runtime.key_values import format_pairs

REFRESH_S = 1.0
_TOOK = "Time"
_GAPS = "gaps: waiting for the others"
_TROUBLE = ("failed", "lost", "rejected", "stopped")
_ABOUT = frozenset((ChangeTopic.RUN, ChangeTopic.ROUND, ChangeTopic.METRICS, ChangeTopic.EVENT, ChangeTopic.LAGGED))

Rows = list[dict[str, Any]]


def build(view: PageView) -> Callable[[str], Awaitable[None]]:
    """Return the page's function."""

    async def run(run_id: str) -> None:
        try:
            record = await view.api.history.run_record(run_id)
        except UnknownRunError as error:
            with view.frame("No such run"):
                hint(f"{error}. It may have been deleted from the journal. These are there:", "fedops-mqtt runs")
            return
        with view.frame(run_id):
            await RunDetails(view, record).draw()

    return run


class RunDetails:
    """One visitor's page of a run."""

    def __init__(self, view: PageView, record: RunRecord) -> None:
        self._view = view
        self._run_id = record.run_id
        self._record = record
        self._drawn: dict[str, Any] = {}
        self._rounds: Rows = []
        self._spent: charts.Spent = {}
        self._is_cut = False
        self._last_ids = {"events": 0, "client_metrics": 0}
        self._lanes_at = 0.0

    async def draw(self) -> None:
        """Draw the page and update it while it is open."""
        self._changes = subscription(self._view)
        self._head = ui.element("div").classes("fed-card")
        self._trouble = section("What went wrong")
        with ui.element("div").classes("fed-columns"):
            self._accuracy = draw_chart("Accuracy by round")
            self._loss = draw_chart("Loss by round")
            self._times = draw_chart("Time by round", unit="s")
        colours = {name.removesuffix("_s"): colour for name, colour in charts.LANE.items()}
        lanes = draw_chart("What every client did", unit="UTC", colours=colours, remark=_GAPS)
        self._lanes = LaneChart(lanes, self._name_of)
        with ui.element("div").classes("fed-columns"):
            self._clients = MemberTable(section("Clients"), self._record.task_id, self._name_of)
            self._models = section("Model versions")
        self._history = HistoryTable(section("History"), self._name_of)
        self._dialogs = ui.element("div")  # outlives what is drawn again around the button
        await self._refresh(_ABOUT)
        ui.timer(REFRESH_S, self._update)

    async def _update(self) -> None:
        kinds = {each.kind for each in self._changes.take() if each.is_about(None, self._run_id)} & _ABOUT
        if kinds or self._has_other_lanes():
            await self._refresh(_ABOUT if ChangeTopic.LAGGED in kinds else frozenset(kinds))
        elif self._record.outcome is None:
            self._draw_head()  # its duration grows

    async def _refresh(self, kinds: frozenset[ChangeTopic]) -> None:
        """Read and show what has changed; `kinds`: what may have."""
        history = self._view.api.history
        self._record = await history.run_record(self._run_id)
        metrics = await self._read_new("client_metrics") if ChangeTopic.METRICS in kinds else []
        events = await self._read_new("events") if ChangeTopic.EVENT in kinds else []
        charts.add_spent(self._spent, metrics)
        self._draw_head()
        self._redraw("trouble", self._troubles(), self._draw_trouble)
        self._clients.show(self._record.clients)
        self._history.add(events)
        if ChangeTopic.ROUND in kinds:
            await self._draw_rounds()
        set_chart(self._times, charts.round_times(self._rounds, self._spent))
        await self._draw_lanes(metrics, events)
        if self._drawn.get("outcome", "") != self._record.outcome:  # a run's model is saved at its end
            self._drawn["outcome"] = self._record.outcome
            models = (await history.list_models(self._record.task_id)).items
            self._redraw("models", [model for model in models if model.run_id == self._run_id], self._draw_models)

    async def _read_new(self, name: Literal["events", "client_metrics"]) -> Rows:
        """Return the rows since the last time; the first time the newest."""
        history, last = self._view.api.history, self._last_ids[name]
        if last == 0:
            rows = (await history.newest_of_run(name, self._run_id, MAX_HISTORY)).items
            self._is_cut = self._is_cut or len(rows) == MAX_HISTORY
        elif name == "events":
            rows = (await history.list_events(self._run_id, after=last, limit=MAX_HISTORY)).items
        else:
            rows = (await history.list_metrics(self._run_id, after=last, limit=MAX_HISTORY)).items
        if rows:
            self._last_ids[name] = rows[-1]["id"]
        return rows

    async def _draw_rounds(self) -> None:
        rounds = (await self._view.api.history.list_rounds(self._run_id)).items
        set_chart(self._accuracy, charts.lines(charts.by_round(rounds, ACCURACY), is_share=True))
        set_chart(self._loss, charts.lines(charts.by_round(rounds, LOSS)))
        # Of a long run only the newest metrics are read, and a round before them is not all waiting.
        first = min(self._spent, default=0) if self._is_cut else 0
        self._rounds = [row for row in rounds if row["round"] >= first]

    def _has_other_lanes(self) -> bool:
        age_s = self._view.manager.now() - self._lanes_at
        return charts.are_lanes_due(self._lanes.macs, self._wanted_lanes(), age_s, is_full=self._lanes.is_full)

    def _wanted_lanes(self) -> list[str]:
        return charts.choose_lanes({mac: member.status for mac, member in self._record.clients.items()})

    async def _draw_lanes(self, metrics: Rows, events: Rows) -> None:
        if not self._has_other_lanes():
            self._lanes.add(metrics, events)
            return
        history, self._lanes_at = self._view.api.history, self._view.manager.now()
        metrics = (await history.newest_of_run("client_metrics", self._run_id, MAX_HISTORY)).items
        events = (await history.newest_of_run("events", self._run_id, MAX_HISTORY)).items
        self._lanes.draw(self._wanted_lanes(), metrics, events)

    def _redraw(self, name: str, content: Any, draw: Callable[[Any], None]) -> None:
        """Draw a part again only when its content has changed: what a person reads does not jump."""
        if name not in self._drawn or self._drawn[name] != content:
            self._drawn[name] = content
            draw(content)

    def _draw_head(self) -> None:
        run = self._record
        ended_at = run.ended_at.timestamp() if run.ended_at else self._view.manager.now()
        app = [("App", f"{run.app_version} ({run.app_digest[:12]})")] if run.app_digest else []
        given = {name: value for name, value in run.run_config.items() if value is not None}
        settings = [("Settings", format_pairs(given))] if given else []
        shown = [
            ("Task", run.task_id),
            ("Began", clock(run.created_at) + " UTC"),
            (_TOOK, ""),
            ("Round", f"{run.round} of {run.num_rounds}"),
            ("Clients", _counted(Counter(member.status for member in run.clients.values()))),
            ("FL server", _server_of(run)),
            *app,
            *settings,
            *((name, number(value)) for name, value in run.metrics.items() if name.endswith((ACCURACY, LOSS))),
        ]
        self._redraw("head", (run_label(run), run.reason, shown), self._draw_facts)
        self._facts[_TOOK].set_text(duration(ended_at - run.created_at.timestamp()))

    def _draw_facts(self, content: tuple[str, str | None, list[tuple[str, Any]]]) -> None:
        label, reason, shown = content
        run = self._record
        self._head.clear()
        with self._head:
            with ui.element("div").classes("fed-row"):
                chip(label)
                ui.label(short_reason(reason) or _NOW.get(label, "")).classes("fed-soft")
                ui.space()
                if run.outcome is None:
                    stop_button(self._view, self._run_id, self._dialogs).set_enabled(not run.is_stopping)
            _draw_bar(100 * run.round / max(1, run.num_rounds))
            self._facts = facts(shown)
            with ui.element("div").classes("fed-row"):
                ui.link("task", f"/tasks/{run.task_id}")
                for what in ("rounds", "metrics", "events", "clients"):
                    ui.link(f"{what}.csv", f"/api/v1/runs/{self._run_id}/{what}.csv")
                ui.link("JSON", f"/api/v1/runs/{self._run_id}")

    def _troubles(self) -> list[tuple[str, str, str]]:
        run = self._record
        found = [
            (mac, str(member.status), member.reason or "no reason given")
            for mac, member in run.clients.items()
            if member.status in _TROUBLE and run.outcome != "stopped"
        ]
        if run.outcome == "failed":
            found.insert(0, ("run", "failed", run.reason or ""))
        return found

    def _draw_trouble(self, troubles: list[tuple[str, str, str]]) -> None:
        self._trouble.set_visibility(bool(troubles))
        clear_section(self._trouble)
        with self._trouble:
            for subject, status, reason in troubles[:50]:
                with ui.element("div").classes("fed-failure"):
                    with ui.element("div").classes("fed-row"):
                        ui.label(self._name_of(subject)).classes("fed-heading")
                        chip(status)
                    ui.label(readable(reason, keep="\n\t")).classes("fed-code fed-pre")
            if len(troubles) > 50:
                ui.label(f"… and {len(troubles) - 50} more; clients.csv has them all").classes("fed-soft")

    def _draw_models(self, models: list[ModelRecord]) -> None:
        clear_section(self._models)
        with self._models:
            if not models:
                ui.label("None yet: a model is saved when the run ends well.").classes("fed-soft")
                return
            with table("Version", "Model", "Round", "Accuracy", "Loss", "Size", "Saved (UTC)"):
                for model in models:
                    with ui.element("tr"):
                        cells(f"V{model.version}")
                        with ui.element("td"):
                            ui.link("download", f"/api/v1/tasks/{model.task_id}/models/{model.file_name}")
                        measures = (number(measure(model.metrics, ending)) for ending in (ACCURACY, LOSS))
                        cells(model.round, *measures, size(model.size_bytes), clock(model.saved_at))

    def _name_of(self, mac: str) -> str:
        return self._view.rows.name_of(self._record.task_id, mac)


def _counted(counts: Counter[str]) -> str:
    by_status = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if name != "chosen")
    return f"{counts.total()} chosen: {by_status}".removesuffix(": ") if counts else "none yet"


def _server_of(run: RunRecord) -> str:
    if run.server_ip and run.outcome is None:
        return run.server_ip
    launches = f"launch {run.launch}" if run.launch else "not launched"
    return f"{launches}, ended" if run.outcome and run.launch else launches


_NOW = {
    "pending": "waits for enough idle clients",
    "starting": "its FL server is being started",
    "running": "rounds are being trained",
    "stopping": "its clients are being stopped",
}


def _draw_bar(percent: float) -> None:
    values = f'aria-valuenow="{percent:.0f}" aria-valuemin="0" aria-valuemax="100"'
    with ui.element("div").classes("fed-bar").props(f'role="progressbar" aria-label="Rounds" {values}'):
        ui.element("div").style(f"width:{percent:.1f}%")
