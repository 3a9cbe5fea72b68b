"""The verbs about published apps: app publish, list, show, rollback, withdraw; and `run FOLDER`, which does all."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedops_mqtt.cli.examples import shows
from fedops_mqtt.cli.options import takes_settings
from fedops_mqtt.cli.steer import Json, RunConfig, chosen_clients, start_run
from fedops_mqtt.protocol import check_task_id
from fedops_mqtt.runtime.settings import CliSettings

if TYPE_CHECKING:
    from fedops_mqtt.cli.app_source import AppSource
    from fedops_mqtt.cli.manager_api import ManagerApi, Record

Source = Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="What `flwr build` made, or the project's folder.")]
Task = Annotated[str, typer.Argument(metavar="TASK", help="The task whose app it is.")]
Fleet = Annotated[
    Path | None,
    typer.Option("--fleet", metavar="FOLDER", help="The fleet whose key signs it. [default: ./fleet, if there is one]"),
]

_COLUMNS = ("version", "is_current", "publisher", "name", "size", "published_at", "key_id", "digest")
_RUN_COLUMNS = ("run_id", "task_id", "outcome", "round", "run_config", "metrics", "model_path")


def add_to(app: typer.Typer) -> typer.Typer:
    """Add the verbs about published apps to the group `app`, and return it."""
    verbs = {"publish": publish, "list": list_, "show": show, "rollback": rollback, "withdraw": withdraw}
    for name, verb in verbs.items():
        app.command(name, epilog=verb.__dict__["epilog"])(verb)
    return app


@shows(
    "fedops-mqtt app publish lab.digits.1-2-0.ab12cd34.fab --task digits --fleet ./fleet",
    "fedops-mqtt app publish ./my-flower-project --task digits",
    model=CliSettings,
)
@takes_settings(CliSettings)
def publish(
    settings: CliSettings,
    source: Source,
    task: Annotated[str, typer.Option("--task", help="The task whose app it is; a new name makes a task.")],
    fleet: Fleet = None,
    json: Json = False,
) -> None:
    """Make a Flower app the current version of a task's app: its next run trains with it."""
    from fedops_mqtt.cli.app_source import read_source
    from fedops_mqtt.cli.manager_api import ManagerApi

    with ManagerApi(settings) as manager:
        _print_app(_publish(manager, settings, read_source(source), task, fleet), is_json=json)


@shows("fedops-mqtt app list digits", "fedops-mqtt app list digits --json", model=CliSettings)
@takes_settings(CliSettings)
def list_(settings: CliSettings, task: Task, json: Json = False) -> None:
    """List the versions of a task's app, newest first."""
    from fedops_mqtt.cli.manager_api import ManagerApi
    from fedops_mqtt.cli.output import print_records

    with ManagerApi(settings) as manager:
        print_records(manager.get(f"/tasks/{check_task_id(task)}/apps")["items"], _COLUMNS, is_json=json)


@shows("fedops-mqtt app show DIGEST", model=CliSettings)
@takes_settings(CliSettings)
def show(
    settings: CliSettings,
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="As `app list` prints it.")],
    json: Json = False,
) -> None:
    """Show a published app: whose it is, what it needs, its files, and the runs that trained with it."""
    from fedops_mqtt.cli.manager_api import ManagerApi
    from fedops_mqtt.cli.output import as_pairs, print_records_as_lines

    with ManagerApi(settings) as manager:
        found = manager.get(f"/apps/{digest}")
    if json:
        print_records_as_lines([found], is_json=True)
        return
    for each in found["published"]:
        shown = {"requires": ", ".join(each["requires"]), "config": as_pairs(each["config"])}
        print_records_as_lines([{"kind": "app", **each, **shown}], is_json=False)
    print_records_as_lines(({"kind": "file", **each} for each in found["files"]), is_json=False)
    for run in found["runs"]:
        facts = {name: run[name] for name in _RUN_COLUMNS}
        facts["run_config"] = as_pairs(run["run_config"])
        print_records_as_lines([{"kind": "run", **facts}], is_json=False)


@shows("fedops-mqtt app rollback digits", "fedops-mqtt app rollback digits 1.1.0", model=CliSettings)
@takes_settings(CliSettings)
def rollback(
    settings: CliSettings,
    task: Task,
    version: Annotated[
        str | None,
        typer.Argument(metavar="[VERSION]", help="Or a digest. [default: what was published before the current one]"),
    ] = None,
    json: Json = False,
) -> None:
    """Make an earlier version of a task's app current again; runs that go on keep theirs."""
    from fedops_mqtt.cli.manager_api import ManagerApi

    with ManagerApi(settings) as manager:
        body = {"version": version} if version is not None else None
        _print_app(manager.post(f"/tasks/{check_task_id(task)}/apps/rollback", body), is_json=json)


@shows("fedops-mqtt app withdraw digits", model=CliSettings)
@takes_settings(CliSettings)
def withdraw(settings: CliSettings, task: Task) -> None:
    """Leave a task without a published app: its next run is as its devices and the tasks file say."""
    from fedops_mqtt.cli.manager_api import ManagerApi

    with ManagerApi(settings) as manager:
        app = manager.delete(f"/tasks/{check_task_id(task)}/apps/current")
    back = f"fedops-mqtt app rollback {task} {app['version']}"
    print(f"withdrew {app['publisher']}/{app['name']} {app['version']} from task {task}; {back} brings it back")


@shows(
    "fedops-mqtt run ./my-flower-project --min-clients 3",
    "fedops-mqtt run ./my-flower-project --task digits --run-config 'lr=0.1 local-epochs=2' --fleet ./fleet",
    model=CliSettings,
)
@takes_settings(CliSettings)
def run_project(
    settings: CliSettings,
    source: Source,
    task: Annotated[str | None, typer.Option("--task", help="The task. [default: the project's name]")] = None,
    min_clients: Annotated[int | None, typer.Option(help="Fewer clients than this are no run.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds to train; default: as the project says.")] = None,
    clients: Annotated[
        str | None, typer.Option(metavar="MAC,…", help="Only these; default: all that are idle.")
    ] = None,
    run_config: RunConfig = None,
    fleet: Fleet = None,
    json: Json = False,
) -> None:
    """Build and publish a Flower project, start a run of it, and follow it to its end."""
    from fedops_mqtt.cli.app_source import read_source
    from fedops_mqtt.cli.manager_api import ManagerApi

    app = read_source(source)
    task_id = task or app.bundle.name
    wanted = {"num_rounds": rounds, "min_clients": min_clients, "clients": chosen_clients(clients)}
    with ManagerApi(settings) as manager:
        _print_app(_publish(manager, settings, app, task_id, fleet), is_json=json)
        start_run(manager, task_id, wanted, run_config, waits=True, is_json=json)


def _publish(manager: "ManagerApi", settings: CliSettings, app: "AppSource", task: str, fleet: Path | None) -> "Record":
    from fedops_mqtt.cli.app_source import sign

    signature = sign(app, check_task_id(task), fleet, manager=settings.manager)
    query: dict[str, Any] = signature.model_dump() if signature else {}
    record: Record = manager.upload(f"/tasks/{check_task_id(task)}/apps", app.data, **query)
    return record


def _print_app(app: "Record", *, is_json: bool) -> None:
    from fedops_mqtt.cli.output import print_records_as_lines

    facts = {name: app[name] for name in ("task_id", "version", "digest", "size", "key_id", "is_current")}
    print_records_as_lines([app if is_json else {"kind": "app", **facts}], is_json=is_json)
