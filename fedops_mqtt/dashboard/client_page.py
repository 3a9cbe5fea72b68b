"""One client: its status, its history, its load while it trained, its last error."""

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

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
    table,
)
from fedops_mqtt.dashboard.texts import REASONS, amount, clock, describe_event, label_of, readable, reason_of
from fedops_mqtt.dashboard.view import PageView, subscription
from fedops_mqtt.manager.api.models import ClientRecord
from fedops_mqtt.manager.errors import UnknownClientError
from fedops_mqtt.manager.events import ChangeTopic
from fedops_mqtt.protocol import IdentityError, MetricsKind

REFRESH_S = 1.0
NUM_EVENTS = 200
NUM_METRICS = 2000
_PERCENT = (("cpu", "CPU"), ("memory", "memory"), ("memory_percent", "memory of the training"), ("disk", "disk"))
_NETWORK = (("network_sent", "sent"), ("network_recv", "received"))


def build(view: PageView) -> Callable[[str, str], Awaitable[None]]:
    """Return the page's function."""

    async def client(task_id: str, client_mac: str) -> None:
        try:
            record = await view.api.history.get_client(client_mac, task_id)
        except (UnknownClientError, IdentityError) as error:
            with view.frame("No such client"):
                hint(f"{error}.", "fedops-mqtt client --task-id TASK --app MODULE:ATTRIBUTE")
            return
        with view.frame(readable(record.client_name or record.client_mac)):
            await ClientDetails(view, record).draw()

    return client


class ClientDetails:
    """One visitor's page of a client."""

    def __init__(self, view: PageView, record: ClientRecord) -> None:
        self._view = view
        self._task_id, self._mac = record.task_id, record.client_mac
        self._drawn: Any = None

    async def draw(self) -> None:
        """Draw the page and update it while it is open."""
        self._changes = subscription(self._view)
        self._head = ui.element("div").classes("fed-card")
        self._error = section("Last error")
        with ui.element("div") as self._no_load:
            hint("No system load yet: it is measured while the client trains, every few seconds.")
        with ui.element("div").classes("fed-columns") as self._charts:
            self._percent = draw_chart("System load while training", unit="%")
            self._network = draw_chart("Network while training", unit="MB")
        self._history = section("Timeline")
        await self._refresh()
        ui.timer(REFRESH_S, self._update)

    async def _update(self) -> None:
        changes = self._changes.take()
        if any(each.client_mac == self._mac or each.kind is ChangeTopic.LAGGED for each in changes):
            await self._refresh()

    async def _refresh(self) -> None:
        history = self._view.api.history
        try:
            record = await history.get_client(self._mac, self._task_id)
        except UnknownClientError:
            ui.navigate.to("/")
            return
        events = (await history.list_client_events(self._mac, limit=NUM_EVENTS)).items
        metrics = (await history.list_client_metrics(self._mac, limit=NUM_METRICS)).items
        self._draw_head(record)
        self._draw_error(record, events)
        loads = [row for row in metrics if row["kind"] == MetricsKind.SYSTEM]
        self._charts.set_visibility(bool(loads))
        self._no_load.set_visibility(not loads)
        set_chart(self._percent, charts.over_time(_series(loads, _PERCENT)))
        set_chart(self._network, charts.over_time(_series(loads, _NETWORK, per=1_000_000)))
        if events != self._drawn:
            self._drawn = events
            self._draw_history(events)

    def _draw_head(self, record: ClientRecord) -> None:
        run, last = record.run, record.last_run
        self._head.clear()
        with self._head:
            with ui.element("div").classes("fed-row"):
                chip(label_of(record).value)
                reason = reason_of(record)
                text = f"{reason}: {REASONS[reason]}" if reason in REASONS else readable(reason)
                ui.label(text).classes("fed-soft")
                if run:
                    ui.label(f"{run.phase}, round {run.round}")
                    ui.link(run.run_id, f"/runs/{run.run_id}")
            facts(
                [
                    ("MAC", record.client_mac),
                    ("Task", record.task_id),
                    ("Since (UTC)", clock(record.since)),
                    ("Last message (UTC)", clock(record.heard_at)),
                    ("Last run", f"{last.run_id}: {last.outcome}" if last else "none"),
                    ("Global model", record.gl_model),
                    ("FL server", record.server_ip or "–"),
                    *record.agent.items(),
                ]
            )

    def _draw_error(self, record: ClientRecord, events: list[dict[str, Any]]) -> None:
        failed = (event["detail"] for event in events if (event["detail"] or {}).get("status") == "failed")
        reasons = [detail.get("reason") for detail in failed]
        if record.last_run is not None and record.last_run.outcome == "failed":
            reasons.append(record.last_run.reason)
        reason = reasons[-1] if reasons else None
        self._error.set_visibility(bool(reason))
        clear_section(self._error)
        with self._error:
            ui.label(readable(reason or "", keep="\n\t")).classes("fed-code fed-pre").props('tabindex="0"')

    def _draw_history(self, events: list[dict[str, Any]]) -> None:
        clear_section(self._history)
        with self._history:
            if not events:
                ui.label("Nothing yet.").classes("fed-soft")
                return
            with table("When (UTC)", "What", "Run"):
                for event in reversed(events):
                    with ui.element("tr").classes("fed-history"):
                        cells(clock(event["at"]), words=describe_event(event))
                        with ui.element("td"):
                            if event["run_id"]:
                                ui.link(event["run_id"], f"/runs/{event['run_id']}")


def _series(
    loads: list[dict[str, Any]], names: tuple[tuple[str, str], ...], *, per: float = 1
) -> list[tuple[str, list[Any]]]:
    return [
        (label, [[row["at"].isoformat(), round(amount(row["values"], name) / per, 3)] for row in loads])
        for name, label in names
        if loads
    ]
