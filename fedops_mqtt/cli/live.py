"""The live table: a `Picture` as rich renderables, for `watch` and the demo.

It only draws; what it shows was decided by the picture and the fleet below it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedops_mqtt.cli.fleet_view import RECENT, Picture, client_record, run_record
from fedops_mqtt.cli.output import as_line, as_text, in_a_cell
from fedops_mqtt.core.fleet import ClientView, Presence, View
from fedops_mqtt.core.measures import ACCURACY, measure
from fedops_mqtt.protocol import ClientCondition, RunCondition, RunOutcome, RunStatus

_BARS = "▁▂▃▄▅▆▇█"
_MAX_RUNS = 5
_OTHER_LINES = 13 + RECENT
"""Lines of a screen that are not rows of clients: titles, heads, runs, blanks."""
_MIN_ROWS = 5
_SHOWN_METRICS = 3
_CLIENT_COLUMNS = ("client", "task", "presence", "status", "phase", "round", "metrics", "since")
_RUN_COLUMNS = ("run", "task", "status", "round", "accuracy", "by round", "clients", "why")


def draw(picture: Picture, *, now: float, height: int, title: str = "") -> RenderableType:
    """Return the whole screen: who is there, below it the runs; at most `height` lines."""
    head = Text.assemble((title, "bold"), "  ", _say_connection(picture))
    max_rows = max(_MIN_ROWS, height - _OTHER_LINES)
    return Group(head, _draw_clients(picture, now, max_rows), _draw_runs(picture), _draw_recent(picture))


def _say_connection(picture: Picture) -> Text:
    if picture.is_connected is None:
        return Text("connecting to the broker", style="yellow")
    if not picture.is_connected:
        return Text("broker lost, connecting again", style="bold red")
    if picture.losses.problem is not None:
        return Text(picture.losses.problem, style="bold red")
    manager = picture.fleet.manager
    if manager is None or manager.is_out:
        return Text("connected; no manager", style="yellow")
    return Text(f"connected; manager {as_text(manager.status.url or 'online')}", style="green")


def _draw_clients(picture: Picture, now: float, max_rows: int) -> RenderableType:
    views = picture.clients()
    if not views:
        return Text("no clients yet: `fedops-mqtt client --task-id T --app MODULE:ATTRIBUTE` adds one", style="dim")
    table = Table(*_CLIENT_COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False)
    for view in views[:max_rows]:
        table.add_row(*_client_cells(picture, view, now))
    more = len(views) - max_rows
    return Group(table, Text(f"… and {more} more", style="dim")) if more > 0 else table


def _client_cells(picture: Picture, view: ClientView, now: float) -> list[RenderableType]:
    record = client_record(picture, view)
    name = record["client_name"] or record["client_mac"]
    return [
        Text(as_text(name)),
        Text(record["task_id"]),
        Text(_say_presence(view), style=_PRESENCE_STYLE[view.presence]),
        Text(record["status"], style=_STATUS_STYLE.get(view.status.status, "")),
        Text(as_text(record["phase"])),
        Text(as_text(record["round"])),
        Text(say_metrics(record["metrics"])),
        Text(_say_duration(now - view.since)),
    ]


def _say_presence(view: ClientView) -> str:
    return f"{view.presence} ({as_text(view.out_reason)})" if view.is_out else str(view.presence)


def say_metrics(metrics: Mapping[str, Any]) -> str:
    """Return the numbers that say how the model does, or the first few where none is called so."""
    measures = [name for name in metrics if name.endswith(("loss", "accuracy"))] or list(metrics)
    return "  ".join(f"{as_text(name)} {as_text(metrics[name])}" for name in measures[:_SHOWN_METRICS])


def _draw_runs(picture: Picture) -> RenderableType:
    views = picture.runs()[:_MAX_RUNS]
    if not views:
        return Text("no runs yet: `fedops-mqtt start TASK` starts one", style="dim")
    table = Table(*_RUN_COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False)
    for view in views:
        table.add_row(*_run_cells(picture, view))
    return table


def _draw_recent(picture: Picture) -> RenderableType:
    """The last events, each cut to one line."""
    lines = [Text(as_line(change), style="dim", no_wrap=True, overflow="ellipsis") for change in picture.recent]
    return Group(Text(), *lines)


def _run_cells(picture: Picture, view: View[RunStatus]) -> list[RenderableType]:
    record = run_record(view.status)
    rounds = picture.history.get((view.status.task_id, view.status.run_id), [])
    said = record["outcome"] or record["status"]
    return [
        Text(record["run_id"]),
        Text(record["task_id"]),
        Text(said, style=_run_style(view.status)),
        Text(f"{record['round']}/{record['num_rounds']}"),
        Text(as_text(measure(record["metrics"], ACCURACY))),
        Text(sparkline([value for each in rounds if (value := measure(each.metrics, ACCURACY)) is not None])),
        Text(as_text(record["clients"])),
        Text(in_a_cell(record["why"])),
    ]


def sparkline(values: Sequence[float]) -> str:
    """Return values between 0 and 1 as a row of bars."""
    top = len(_BARS) - 1
    return "".join(_BARS[min(top, int(min(1.0, max(0.0, value)) * (top + 1)))] for value in values)


def _run_style(status: RunStatus) -> str:
    if status.outcome is not None:
        return "green" if status.outcome is RunOutcome.COMPLETED else "bold red"
    return "cyan" if status.status is RunCondition.RUNNING else "yellow"


def _say_duration(duration_s: float) -> str:
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
