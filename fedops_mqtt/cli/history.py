"""The verbs that read what a manager has written down: run show, logs, metrics."""

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from click import UsageError

from fedops_mqtt.cli.apps import run_project
from fedops_mqtt.cli.options import Json, add_verbs, shows, takes_settings
from fedops_mqtt.cli.output import (
    FatalError,
    as_line,
    as_pairs,
    as_text,
    print_records,
    print_records_as_lines,
    readable,
)
from fedops_mqtt.runtime.settings import CliSettings, LogsSettings
from fedops_mqtt.runtime.systemd import ExitCode

if TYPE_CHECKING:
    from fedops_mqtt.cli.manager_api import ManagerApi, Record

_POLL_S = 0.5
"""Between two looks at a log that is followed."""
_PAGE = 1000

RunId = Annotated[str, typer.Argument(hidden=True)]

_FACTS = (
    "site", "run_id", "task_id", "status", "outcome", "reason", "created_at", "ended_at", "round", "num_rounds",
    "min_clients", "app_version", "app_digest", "run_config", "launch", "server_ip", "gl_model", "metrics",
    "trigger_to_training_ms", "model_path",
)  # fmt: skip
_ROUND_COLUMNS = ("round", "metrics", "duration_s", "bytes_in", "bytes_out", "gl_model")
_METRICS_COLUMNS = ("at", "client_mac", "kind", "round", "values")
_TABLE_OF = {False: "rounds", True: "metrics"}
_MEMBER_COLUMNS = ("client_mac", "status", "round", "attempt", "delay_ms", "reason")


def make_run_app() -> typer.Typer:
    """Return the verbs about one run; anything else is a project to run."""
    text = "Run a Flower project (`run FOLDER`, as `run project FOLDER`), or look at one run."
    app = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None, cls=_RunGroup)
    return add_verbs(app, {"show": show, _RunGroup.default: run_project})


class _RunGroup(typer.core.TyperGroup):
    """`run FOLDER …` is `run project FOLDER …`."""

    default = "project"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@shows("fedops-mqtt run show RUN_ID", "fedops-mqtt run show RUN_ID --json", model=CliSettings)
@takes_settings(CliSettings)
def show(settings: CliSettings, run: RunId, json: Json = False) -> None:
    """Show one run: how it stands, its rounds, and every client in it with its reason.

    RUN is its id, as `start` and `runs` print it.
    """
    from fedops_mqtt.cli.sites import the_manager

    with the_manager(settings, run=run) as manager:
        found = manager.with_site(manager.get(f"/runs/{run}"))
        rounds = manager.get(f"/runs/{run}/rounds")["items"]
    if json:
        print_records_as_lines([{**found, "rounds": rounds}], is_json=True)
        return
    found["run_config"] = as_pairs(found["run_config"])
    if sys.stdout.isatty():
        _show_run(found, rounds)
    else:
        print_records_as_lines(_as_records(found, rounds), is_json=False)


@shows(
    "fedops-mqtt logs RUN_ID --follow",
    "fedops-mqtt logs RUN_ID --client 02:00:00:00:00:01",
    "fedops-mqtt logs --training",
    model=LogsSettings,
)
@takes_settings(LogsSettings)
def logs(
    settings: LogsSettings,
    run: Annotated[str | None, typer.Argument(hidden=True)] = None,
    client: Annotated[
        str | None, typer.Option(metavar="MAC", help="This client's messages, not the server's log.")
    ] = None,
    launch: Annotated[int | None, typer.Option(min=1, help="An earlier launch of the server. [default: last]")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    training: Annotated[
        bool, typer.Option("--training", help="What a training on this machine printed. [default: the newest]")
    ] = False,
    json: Json = False,
) -> None:
    """Print the log of a run's FL server, or one client's messages in it, or the output of a training on this machine.

    RUN is its id. What a training printed stays on its device, in the state folder; its last error is here too.
    """
    from fedops_mqtt.cli.sites import the_manager

    if training:
        _print_output(settings, run, client, is_json=json)
        return
    if run is None:
        raise UsageError("say which run: `fedops-mqtt runs` lists them; --training needs none")
    with the_manager(settings, run=run) as manager:
        if client is not None:
            for event in _events_of(manager, run, client, follows=follow):
                _print_event(event, manager.with_site(event) if json else None)
            return
        parts = _parts_of(manager, run, launch, follows=follow)
        if json:
            print_records_as_lines(map(manager.with_site, lines_of(parts)), is_json=True)
            return
        for part in parts:
            print(readable(part["text"]), end="", flush=True)


@shows("fedops-mqtt metrics RUN_ID --csv > rounds.csv", "fedops-mqtt metrics RUN_ID --clients", model=CliSettings)
@takes_settings(CliSettings)
def metrics(
    settings: CliSettings,
    run: RunId,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a head.")] = False,
    clients: Annotated[bool, typer.Option("--clients", help="What the clients measured, not the rounds.")] = False,
    json: Json = False,
) -> None:
    """Print a run's numbers by round, or what its clients measured.

    RUN is its id.
    """
    from fedops_mqtt.cli.sites import the_manager

    with the_manager(settings, run=run) as manager:
        if csv:
            table = manager.get(f"/runs/{run}/{_TABLE_OF[clients]}.csv", is_text=True)
            sys.stdout.write(manager.with_site_column(table))
            return
        columns = _METRICS_COLUMNS if clients else _ROUND_COLUMNS
        rows = list(_rows(manager, f"/runs/{run}/metrics")) if clients else manager.get(f"/runs/{run}/rounds")["items"]
        rows = [manager.with_site(row) for row in rows]
    print_records(rows, [*manager.with_site({}), *columns], is_json=json)


def _rows(manager: "ManagerApi", path: str) -> "Iterator[Record]":
    """Yield every row of a history, page after page."""
    after = 0
    while rows := manager.get(path, after=after, limit=_PAGE)["items"]:
        yield from rows
        after = rows[-1]["id"]


def _parts_of(manager: "ManagerApi", run: str, launch: int | None, *, follows: bool) -> "Iterator[Record]":
    offset, current = 0, launch
    while True:
        part: Record = manager.get(f"/runs/{run}/logs", offset=offset, launch=launch)
        if part["launch"] != current and current and offset:  # the server was launched again: a log of its own
            current, offset = part["launch"], 0
            continue
        current, offset = part["launch"], part["next_offset"]
        if part["text"]:
            yield part
        elif not follows or _has_ended(manager, run, part):
            return
        else:
            time.sleep(_POLL_S)


def _has_ended(manager: "ManagerApi", run: str, part: "Record") -> bool:
    return bool(part["is_over"]) and manager.get(f"/runs/{run}")["outcome"] is not None


def _events_of(manager: "ManagerApi", run: str, client: str, *, follows: bool) -> "Iterator[Record]":
    mac, after = manager.get(f"/clients/{client}")["client_mac"], 0
    while True:
        is_over = manager.get(f"/runs/{run}")["outcome"] is not None
        rows = manager.get(f"/runs/{run}/events", after=after, limit=_PAGE)["items"]
        yield from (row for row in rows if row["client_mac"] == mac)
        if rows:
            after = rows[-1]["id"]
        elif is_over or not follows:
            return
        else:
            time.sleep(_POLL_S)


def _print_event(event: "Record", as_json: "Record | None") -> None:
    if as_json is not None:
        print_records_as_lines([as_json], is_json=True)
        return
    detail = dict(event["detail"])
    reason = str(detail.pop("reason", None) or "")
    is_long = "\n" in reason and sys.stdout.isatty()  # in a pipe a record is a line
    facts = detail if is_long else {**detail, "reason": reason}
    print(event["at"], as_line({"kind": event["kind"], **facts}), flush=True)
    if is_long:
        print("\n".join(f"    {readable(line)}" for line in reason.splitlines()), flush=True)


def lines_of(parts: "Iterator[Record]") -> "Iterator[Record]":
    """Yield a log's lines as records; a part may end in the middle of a line."""
    rest = ""
    of: Record = {}
    for part in parts:
        if rest and part["launch"] != of["launch"]:
            yield {**of, "line": rest}
            rest = ""
        of = {"run_id": part["run_id"], "launch": part["launch"]}
        lines = (rest + str(part["text"])).splitlines(keepends=True)
        rest = lines.pop() if lines and not lines[-1].endswith("\n") else ""
        yield from ({**of, "line": line.rstrip("\r\n")} for line in lines)
    if rest:
        yield {**of, "line": rest}


def _print_output(settings: LogsSettings, run: str | None, client: str | None, *, is_json: bool) -> None:
    """Print the newest output of a training, of this run and client where they are given."""
    from fedops_mqtt.protocol import mac_to_level
    from fedops_mqtt.runtime.processes import OUTPUT_FOLDER, find_outputs, read_output

    folders = (settings.state_dir / "clients").glob(f"{mac_to_level(client) if client else '*'}/*/{OUTPUT_FOLDER}")
    found = [path for folder in folders for path in find_outputs(folder)]
    found = [path for path in found if run in (None, path.stem, path.stem.rpartition("-")[0])]
    if not found:
        which = "no training" if run is None else f"no training of run {run}"
        where = f"{settings.state_dir} has the output of {which}; --state-dir takes the client's folder"
        raise FatalError(where, ExitCode.FAILED)
    newest = max(found, key=lambda path: path.stat().st_mtime)
    lines = (line.decode(errors="replace") for line in read_output(newest))
    if is_json:
        print_records_as_lines(({"output": str(newest), "line": line.rstrip("\n")} for line in lines), is_json=True)
        return
    print(f"{newest}:", file=sys.stderr)
    for line in lines:
        print(readable(line), end="", flush=True)


def _as_records(run: "Record", rounds: "list[Record]") -> "Iterator[Record]":
    yield {"kind": "run", **{name: run.get(name) for name in _FACTS}}
    for row in rounds:
        yield {"kind": "round", **{name: row[name] for name in ("round", "metrics", "duration_s")}}
    for mac, member in run["clients"].items():
        yield {"kind": "client", "client_mac": mac, **member}


def _show_run(run: "Record", rounds: "list[Record]") -> None:
    from rich.console import Console
    from rich.text import Text

    from fedops_mqtt.cli.watch import sparkline
    from fedops_mqtt.core.run import ACCURACY, measure

    console = Console()
    for name in _FACTS:
        if run.get(name) not in (None, "", {}):
            console.print(Text.assemble((f"{name:<24}", "dim"), as_text(run[name])))
    found: list[Any] = [measure(row["metrics"], ACCURACY) for row in rounds]
    if bars := sparkline([each for each in found if each is not None]):
        console.print(Text.assemble((f"{'accuracy by round':<24}", "dim"), bars))
    members = [
        {"client_mac": mac, "delay_ms": member["trigger_to_training_ms"], **member}
        for mac, member in run["clients"].items()
    ]
    print_records(members, _MEMBER_COLUMNS, is_json=False)
