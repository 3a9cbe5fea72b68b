"""One run: its status, metrics by round, what every client did when, failures with their reasons, its models."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

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
from fedops_mqtt.dashboard.texts import (
    clock,
    describe_event,
    duration,
    number,
    readable,
    run_label,
    short_reason,
    size,
)
from fedops_mqtt.dashboard.view import PageView, subscription
from fedops_mqtt.manager.api.history import MAX_HISTORY
from fedops_mqtt.manager.api.models import MemberRecord, ModelRecord, RunRecord
from fedops_mqtt.manager.errors import UnknownRunError
from fedops_mqtt.manager.events import ChangeTopic
from fedops_mqtt.runtime.key_values import format_pairs

REFRESH_S = 1.0
_TOOK = "Time"
_GAPS = "gaps: waiting for the others"
MAX_SHOWN_EVENTS = 300
_TROUBLE = ("failed", "lost", "rejected", "stopped")
_ABOUT = (ChangeTopic.RUN, ChangeTopic.ROUND, ChangeTopic.METRICS, ChangeTopic.EVENT, ChangeTopic.LAGGED)


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
        self._lanes = draw_chart("What every client did", unit="UTC", colours=colours, remark=_GAPS)
        with ui.element("div").classes("fed-columns"):
            self._clients = section("Clients")
            self._models = section("Model versions")
        self._history = section("History")
        self._dialogs = ui.element("div")  # outlives what is drawn again around the button
        await self._refresh()
        ui.timer(REFRESH_S, self._update)

    async def _update(self) -> None:
        if any(each.kind in _ABOUT and each.is_about(None, self._run_id) for each in self._changes.take()):
            await self._refresh()
        elif self._record.outcome is None:
            self._draw_head()  # its duration grows

    async def _refresh(self) -> None:
        history = self._view.api.history
        self._record = await history.run_record(self._run_id)
        rounds = (await history.list_rounds(self._run_id)).items
        metrics = (await history.list_metrics(self._run_id, limit=MAX_HISTORY)).items
        events = (await history.list_events(self._run_id, limit=MAX_HISTORY)).items
        models = (await history.list_models(self._record.task_id)).items
        self._draw_head()
        self._redraw("trouble", self._troubles(), self._draw_trouble)
        set_chart(self._accuracy, charts.lines(charts.by_round(rounds, ACCURACY), is_share=True))
        set_chart(self._loss, charts.lines(charts.by_round(rounds, LOSS)))
        set_chart(self._times, charts.round_times(rounds, metrics))
        self._draw_lanes(metrics, events)
        self._redraw("clients", self._members(), self._draw_clients)
        self._redraw("models", [model for model in models if model.run_id == self._run_id], self._draw_models)
        self._redraw("history", events[-MAX_SHOWN_EVENTS:], self._draw_history)

    def _redraw(self, name: str, content: Any, draw: Callable[[Any], None]) -> None:
        """Draw a part again only when its content has changed: what a person reads does not jump."""
        if name not in self._drawn or self._drawn[name] != content:
            self._drawn[name] = content
            draw(content)

    def _draw_head(self) -> None:
        run = self._record
        ended_at = run.ended_at.timestamp() if run.ended_at else self._view.context.clock.now()
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

    def _draw_lanes(self, metrics: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
        statuses = {mac: member.status for mac, member in self._record.clients.items()}
        options, num_lanes = charts.lanes(statuses, metrics, events)
        options["yAxis"]["data"] = [self._name_of(mac) for mac in options["yAxis"]["data"]]
        self._lanes.style(f"height:{40 + 30 * max(1, num_lanes)}px")
        set_chart(self._lanes, options)

    def _members(self) -> list[tuple[str, str, MemberRecord]]:
        return [(mac, self._name_of(mac), member) for mac, member in self._record.clients.items()]

    def _draw_clients(self, members: list[tuple[str, str, MemberRecord]]) -> None:
        clear_section(self._clients)
        with self._clients:
            if not members:
                ui.label("None yet: as soon as enough clients of the task are idle, they are chosen.")
                return
            with table("Client", "Status", "Round", "Attempts", "Trigger to training"):
                for mac, name, member in members[:200]:
                    with ui.element("tr"):
                        with ui.element("td"):
                            ui.link(name, f"/clients/{self._record.task_id}/{mac.replace(':', '-')}")
                        with ui.element("td"):
                            chip(member.status)
                        delay = member.trigger_to_training_ms
                        cells(member.round, member.attempt, f"{delay / 1000:.2f} s" if delay else "–")
            if len(members) > 200:
                ui.label(f"… and {len(members) - 200} more; clients.csv has them all").classes("fed-soft")

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

    def _draw_history(self, events: list[dict[str, Any]]) -> None:
        clear_section(self._history)
        with self._history, table("When (UTC)", "Who", "What"):
            for event in reversed(events):
                with ui.element("tr").classes("fed-history"):
                    source = self._name_of(event["client_mac"] or "manager")
                    cells(clock(event["at"])[11:], source, words=describe_event(event))

    def _name_of(self, mac: str) -> str:
        known = self._view.context.bus_reader.fleet.client(self._record.task_id, mac)
        return readable((known.status.client_name if known else "") or mac)


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
