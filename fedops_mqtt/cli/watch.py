"""The verb `watch`: a dashboard in the terminal that only reads, and only MQTT, so it works with no manager running.

In a pipe it prints one line a change.
"""

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedops_mqtt.bus import Bus, BusOptions, connect
from fedops_mqtt.bus.fleet_view import RECENT, FleetView, Key, Record, key_of, run_record
from fedops_mqtt.cli.options import Json, shows, takes_settings
from fedops_mqtt.cli.output import as_line, as_text, in_a_cell, print_records_as_lines
from fedops_mqtt.core.fleet import ClientView, Presence, StatusView
from fedops_mqtt.core.run import ACCURACY, measure
from fedops_mqtt.protocol import ClientCondition, RunCondition, RunOutcome, RunStatus
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.logs import mute_logging
from fedops_mqtt.runtime.settings import WatchSettings

DRAW_S = 0.25
"""Between two pictures: fast enough for the eye, slow enough for a link over ssh."""
_QUIET_S = 0.5
"""MQTT has no end mark for retained messages: when none has come for this long, all are there."""


@shows(
    "fedops-mqtt watch --task-id digits",
    "fedops-mqtt watch --broker mqtt://broker.local:1883 --once --json",
    model=WatchSettings,
)
@takes_settings(WatchSettings)
def watch(
    settings: WatchSettings,
    once: bool = typer.Option(False, "--once", help="Print what is known now, and end."),
    json: Json = False,
) -> None:
    """Show clients and runs as they change.

    It only reads, and needs the broker alone: no manager has to run. In a pipe it prints one line a change.
    """
    mute_logging()
    if once:
        asyncio.run(_print_once(settings, is_json=json))
        return
    follow = _print_changes(settings, is_json=json) if json or not sys.stdout.isatty() else _show_live(settings)
    try:
        asyncio.run(follow)
    except KeyboardInterrupt:
        return  # Ctrl-C is how one leaves a dashboard


async def _print_once(settings: WatchSettings, *, is_json: bool) -> None:
    fleet_view = FleetView()
    async with _connect(settings) as bus, aclosing(bus.changes(fleet_view, settings.task_id)) as changes:
        await anext(changes)  # subscribed, however long that took
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(_QUIET_S):
                    await anext(changes)
    _print(fleet_view.records(), ChangeLines(), is_json=is_json)


async def _print_changes(settings: WatchSettings, *, is_json: bool) -> None:
    lines = ChangeLines()
    async with _connect(settings) as bus, aclosing(bus.changes(FleetView(), settings.task_id)) as batches:
        async for changes in batches:
            _print(changes, lines, is_json=is_json)


def _print(records: Iterable[Record], lines: "ChangeLines", *, is_json: bool) -> None:
    if is_json:
        print_records_as_lines(records, is_json=True)
        return
    for line in lines.of(records):
        print(line, flush=True)


async def _show_live(settings: WatchSettings) -> None:
    from rich.live import Live

    fleet_view = FleetView()

    async def keep_up(bus: Bus) -> None:
        async for _ in bus.changes(fleet_view, settings.task_id):
            pass

    async with _connect(settings) as bus, alongside(keep_up(bus), name="watch-feed"):
        with Live(auto_refresh=False, screen=True) as live:
            while True:
                now = time.monotonic()
                title = f"fedops-mqtt watch {settings.task_id or 'all tasks'}"
                live.update(draw(fleet_view, now=now, height=live.console.height, title=title), refresh=True)
                await asyncio.sleep(DRAW_S)


def _connect(settings: WatchSettings) -> Bus:
    return connect(settings.broker, options=BusOptions.from_settings(settings))


class ChangeLines:
    """Makes lines for people of records, of which they see a part; a change of the rest is no line."""

    def __init__(self) -> None:
        self._last: dict[Key, str] = {}

    def of(self, records: Iterable[Record]) -> Iterator[str]:
        """Yield a line for each record, unless it would be the last one of this client or run again."""
        for record in records:
            line = as_line(_flat(record))
            if record["kind"] not in _SHOWN_FACTS or self._is_new(record, line):
                yield line

    def _is_new(self, record: Record, line: str) -> bool:
        owner = key_of(record)
        last = self._last.pop(owner, None)
        if record["status"] == "forgotten":
            return True
        self._last[owner] = line
        return line != last


def _flat(record: Record) -> Record:
    """Return what people see of a record: no object in it but numbers by name."""
    run, last_run = record.get("run") or {}, record.get("last_run") or {}
    flat = {**record, **run, "last_outcome": last_run.get("outcome"), "clients": record.get("clients_by_status")}
    names = record if record.get("status") == "forgotten" else _SHOWN_FACTS.get(record["kind"], record)
    return {name: flat.get(name) for name in names}


_SHOWN_FACTS = {
    "client": (
        *("kind", "task_id", "client_mac", "client_name", "presence", "status", "reason", "run_id", "phase", "round"),
        *("last_outcome", "gl_model", "metrics"),
    ),
    "run": (
        *("kind", "run_id", "task_id", "status", "outcome", "reason", "round", "num_rounds", "gl_model", "metrics"),
        *("clients", "model_path"),
    ),
}
"""The other kinds are shown as they are."""


_BARS = "▁▂▃▄▅▆▇█"
_MAX_RUNS = 5
_OTHER_LINES = 13 + RECENT
"""Lines of a screen that are not rows of clients: titles, heads, runs, blanks."""
_MIN_ROWS = 5
_SHOWN_METRICS = 3
_CLIENT_COLUMNS = ("client", "task", "presence", "status", "phase", "round", "metrics", "since")
_RUN_COLUMNS = ("run", "task", "status", "round", "accuracy", "by round", "clients", "reason")


def draw(fleet_view: FleetView, *, now: float, height: int, title: str = "") -> RenderableType:
    """Return the whole screen: the clients, below them the runs; at most `height` lines."""
    head = Text.assemble((title, "bold"), "  ", _connection_text(fleet_view))
    max_rows = max(_MIN_ROWS, height - _OTHER_LINES)
    return Group(head, _draw_clients(fleet_view, now, max_rows), _draw_runs(fleet_view), _draw_recent(fleet_view))


def _connection_text(fleet_view: FleetView) -> Text:
    if fleet_view.is_connected is None:
        return Text("connecting to the broker", style="yellow")
    if not fleet_view.is_connected:
        return Text("disconnected, connecting again", style="bold red")
    if fleet_view.dropped_messages.problem is not None:
        return Text(fleet_view.dropped_messages.problem, style="bold red")
    manager = fleet_view.fleet.manager
    if manager is None or manager.is_out:
        return Text("connected; no manager", style="yellow")
    return Text(f"connected; manager {as_text(manager.status.url or 'online')}", style="green")


def _draw_clients(fleet_view: FleetView, now: float, max_rows: int) -> RenderableType:
    views = fleet_view.clients()
    if not views:
        return Text("no clients yet: `fedops-mqtt client --task-id T --app MODULE:ATTRIBUTE` adds one", style="dim")
    table = Table(*_CLIENT_COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False)
    for view in views[:max_rows]:
        table.add_row(*_client_cells(fleet_view, view, now))
    more = len(views) - max_rows
    return Group(table, Text(f"… and {more} more", style="dim")) if more > 0 else table


def _client_cells(fleet_view: FleetView, view: ClientView, now: float) -> list[RenderableType]:
    status = view.status
    presence = f"{view.presence} ({as_text(view.out_reason)})" if view.is_out else str(view.presence)
    return [
        Text(as_text(status.client_name or status.client_mac)),
        Text(status.task_id),
        Text(presence, style=_PRESENCE_STYLE[view.presence]),
        Text(status.status, style=_STATUS_STYLE.get(status.status, "")),
        Text(as_text(status.run.phase if status.run else None)),
        Text(as_text(status.run.round if status.run else None)),
        Text(metrics_text(fleet_view.metrics.get((status.task_id, status.client_mac), {}))),
        Text(_duration_text(now - view.since)),
    ]


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Return the model's accuracy and loss, or the first few metrics where there is neither."""
    measures = [name for name in metrics if name.endswith(("loss", "accuracy"))] or list(metrics)
    return "  ".join(f"{as_text(name)} {as_text(metrics[name])}" for name in measures[:_SHOWN_METRICS])


def _draw_runs(fleet_view: FleetView) -> RenderableType:
    views = fleet_view.runs()[:_MAX_RUNS]
    if not views:
        return Text("no runs yet: `fedops-mqtt start TASK` starts one", style="dim")
    table = Table(*_RUN_COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False)
    for view in views:
        table.add_row(*_run_cells(fleet_view, view))
    return table


def _draw_recent(fleet_view: FleetView) -> RenderableType:
    """The last events, each cut to one line."""
    changes = ChangeLines().of(fleet_view.recent)
    lines = [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in changes]
    return Group(Text(), *lines)


def _run_cells(fleet_view: FleetView, view: StatusView[RunStatus]) -> list[RenderableType]:
    record = run_record(view.status)
    rounds = fleet_view.history.get((view.status.task_id, view.status.run_id), [])
    status = record["outcome"] or record["status"]
    return [
        Text(record["run_id"]),
        Text(record["task_id"]),
        Text(status, style=_run_style(view.status)),
        Text(f"{record['round']}/{record['num_rounds']}"),
        Text(as_text(measure(record["metrics"], ACCURACY))),
        Text(sparkline([value for each in rounds if (value := measure(each.metrics, ACCURACY)) is not None])),
        Text(as_text(record["clients_by_status"])),
        Text(in_a_cell(record["reason"])),
    ]


def sparkline(values: Sequence[float]) -> str:
    """Return values between 0 and 1 as a row of bars."""
    top = len(_BARS) - 1
    return "".join(_BARS[min(top, int(min(1.0, max(0.0, value)) * (top + 1)))] for value in values)


def _run_style(status: RunStatus) -> str:
    if status.outcome is not None:
        return "green" if status.outcome is RunOutcome.COMPLETED else "bold red"
    return "cyan" if status.status is RunCondition.RUNNING else "yellow"


def _duration_text(duration_s: float) -> str:
    minutes, seconds = divmod(int(max(0.0, duration_s)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


_PRESENCE_STYLE = {Presence.ONLINE: "green", Presence.UNCONFIRMED: "yellow", Presence.OUT: "red"}
_STATUS_STYLE = {
    ClientCondition.TRAIN_STARTED: "cyan",
    ClientCondition.TRAIN_FINISHED: "green",
    ClientCondition.TRAIN_FAILED: "bold red",
    ClientCondition.CLIENT_OUT: "red",
}
