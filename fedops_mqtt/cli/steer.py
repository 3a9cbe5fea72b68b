"""The verbs that ask a manager: clients, runs, start, stop; all of them over its HTTP API."""

import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from click import UsageError

from fedops_mqtt.cli.options import Json, shows, takes_settings
from fedops_mqtt.cli.output import FatalError, as_line, print_records_as_lines, progress
from fedops_mqtt.runtime.settings import CliSettings
from fedops_mqtt.runtime.systemd import ExitCode

if TYPE_CHECKING:
    from fedops_mqtt.cli.manager_api import ManagerApi, Record

_POLL_S = 0.5
"""Between two looks at a run that is waited for."""
_COMPLETED = "completed"

Task = Annotated[str | None, typer.Option("--task-id", help="Only of this task.")]

RunConfig = Annotated[
    str | None,
    typer.Option(metavar="'KEY=VALUE …'", help='Settings of this run for its app, as Flower\'s: lr=0.1 name="x"'),
]

_CLIENT_COLUMNS = ("client_mac", "client_name", "task_id", "presence", "status", "reason")
_RUN_COLUMNS = ("run_id", "task_id", "status", "outcome", "round", "num_rounds", "metrics", "reason")


@shows("fedops-mqtt clients --task-id digits", "fedops-mqtt clients --json", model=CliSettings)
@takes_settings(CliSettings)
def clients(
    settings: CliSettings,
    task_id: Task = None,
    forget: Annotated[str | None, typer.Option(metavar="MAC", help="Remove a client that is away for good.")] = None,
    force: Annotated[bool, typer.Option("--force", help="With --forget: also one that seems to be here.")] = False,
    json: Json = False,
) -> None:
    """List the clients that the manager has, or the managers of several sites."""
    from fedops_mqtt.cli.sites import print_all, the_manager

    if forget is None:
        print_all(settings, lambda manager: manager.clients(task_id=task_id), _CLIENT_COLUMNS, is_json=json)
        return
    with the_manager(settings, client=forget) as manager:
        manager.request("DELETE", f"/clients/{forget}", force=force)


@shows("fedops-mqtt runs --task-id digits", "fedops-mqtt runs --json", model=CliSettings)
@takes_settings(CliSettings)
def runs(settings: CliSettings, task_id: Task = None, json: Json = False) -> None:
    """List the runs that the manager has, or the managers of several sites, newest first."""
    from fedops_mqtt.cli.sites import print_all

    print_all(settings, lambda manager: manager.runs(task_id=task_id), _RUN_COLUMNS, is_json=json, newest="created_at")


@shows(
    "fedops-mqtt start digits --rounds 5 --min-clients 3 --wait",
    "fedops-mqtt start digits --run-config 'lr=0.1 local-epochs=2' --wait",
    "fedops-mqtt start digits --clients 02:00:00:00:00:01,02:00:00:00:00:02",
    model=CliSettings,
)
@takes_settings(CliSettings)
def start(
    settings: CliSettings,
    task: Annotated[str, typer.Argument(hidden=True)],
    rounds: Annotated[int | None, typer.Option(help="Rounds to train; default: that of tasks.toml.")] = None,
    min_clients: Annotated[int | None, typer.Option(help="Fewer clients than this are no run.")] = None,
    clients: Annotated[
        str | None, typer.Option(metavar="MAC,…", help="Only these; default: all that are idle.")
    ] = None,
    run_config: RunConfig = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; status 0 only when it completed.")] = False,
    json: Json = False,
) -> None:
    """Start a run of a task and print its id.

    TASK is the task's name in the manager's tasks file, or the one for which an app was published.
    """
    from fedops_mqtt.cli.sites import the_manager

    wanted: Record = {"num_rounds": rounds, "min_clients": min_clients, "clients": chosen_clients(clients)}
    wanted["run_config"] = settings_of_run(run_config)
    with the_manager(settings, task=task) as manager:
        start_run(manager, task, wanted, waits=wait, is_json=json)


@shows("fedops-mqtt stop RUN_ID", "fedops-mqtt stop RUN_ID --wait", model=CliSettings)
@takes_settings(CliSettings)
def stop(
    settings: CliSettings,
    run: Annotated[str, typer.Argument(hidden=True)],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the run has ended.")] = False,
    json: Json = False,
) -> None:
    """Stop a run.

    RUN is its id, as `start` and `runs` print it. Its clients end their training; the last good model stays.
    """
    from fedops_mqtt.cli.sites import the_manager

    with the_manager(settings, run=run) as manager:
        stopped = manager.request("POST", f"/runs/{run}/stop")
        if wait:
            stopped = _wait_for_end(manager, run)
    if json:
        print_records_as_lines([manager.with_site(stopped)], is_json=True)


def chosen_clients(text: str | None) -> list[str] | None:
    """Return the clients that an option names."""
    return [mac.strip() for mac in text.split(",")] if text is not None else None


def settings_of_run(text: str | None) -> "Record | None":
    """Return what `--run-config` names. Raises: UsageError."""
    from fedops_mqtt.runtime.key_values import parse_pairs

    try:
        return dict(parse_pairs(text)) if text else None
    except ValueError as error:
        raise UsageError(f"--run-config: {error}") from error


def start_run(
    manager: "ManagerApi",
    task: str,
    wanted: "Record",
    *,
    waits: bool,
    is_json: bool,
) -> None:
    """Start a run, print it, and follow it to its end where that is asked for. Raises: FatalError."""
    body = {"task_id": task, **wanted}
    run = manager.request("POST", "/runs", body={name: value for name, value in body.items() if value is not None})
    if not is_json:
        print(run["run_id"], flush=True)
    if run["reason"] is not None:
        typer.echo(f"run {run['run_id']} {run['reason']}", err=True)
    if waits:
        run = _wait_for_end(manager, run["run_id"])
    _print_run(manager.with_site(run), is_json=is_json, is_over=waits)


def _wait_for_end(manager: "ManagerApi", run_id: str) -> "Record":
    with progress() as show:
        while True:
            run: Record = manager.get(f"/runs/{run_id}")
            if run.get("outcome") is not None:
                return run
            show(_progress_of(run))
            time.sleep(_POLL_S)


def _progress_of(run: "Record") -> str:
    """Return a run's progress in a line: `running, round 2 of 5, 3 training`."""
    counts = Counter(member["status"] for member in run["clients"].values())
    status = "stopping" if run["is_stopping"] else run["status"]
    clients = [f"{count} {status}" for status, count in sorted(counts.items())] or ["no clients yet"]
    waits = [run["reason"]] if run["reason"] else []
    return ", ".join([status, f"round {run['round']} of {run['num_rounds']}", *clients, *waits])


def _print_run(run: "Record", *, is_json: bool, is_over: bool) -> None:
    if is_json:
        print_records_as_lines([run], is_json=True)
    elif is_over:
        facts = ("outcome", "reason", "round", "num_rounds", "metrics", "model_path")
        print(as_line({"kind": "run", **{name: run.get(name) for name in facts}}))
    if is_over and run["outcome"] != _COMPLETED:
        raise FatalError(f"run {run['run_id']} did not complete: {run.get('reason')}", ExitCode.FAILED)
