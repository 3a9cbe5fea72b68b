"""The verbs about published apps: app publish, list, show, rollback, withdraw; and `run FOLDER`, which does all."""

import re
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from click import UsageError

from fedops_mqtt.apps import AppBundle, AppRefusedError, AppSignature, BundleLimits, read_bundle
from fedops_mqtt.cli.options import Json, add_verbs, shows, takes_settings
from fedops_mqtt.cli.output import FatalError, as_pairs, print_records_as_lines
from fedops_mqtt.cli.steer import RunConfig, chosen_clients, settings_of_run, start_run
from fedops_mqtt.protocol import check_task_id
from fedops_mqtt.runtime.machine import is_loopback
from fedops_mqtt.runtime.settings import ClientSettings, CliSettings
from fedops_mqtt.runtime.systemd import ExitCode

if TYPE_CHECKING:
    from fedops_mqtt.cli.manager_api import ManagerApi, Record


def make_app_app() -> typer.Typer:
    """Return the verbs about apps."""
    text = "Deliver apps to devices, and allow them there."
    app = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
    published = {"publish": publish, "list": list_, "show": show, "rollback": rollback, "withdraw": withdraw}
    return add_verbs(app, {"approve": approve, **published})


@shows("fedops-mqtt app approve DIGEST --config bundle.toml", "fedops-mqtt app approve DIGEST --task-id digits")
@takes_settings(ClientSettings)
def approve(
    settings: ClientSettings,
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="SHA-256 of the bundle, as the refusal named it.")],
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take an approval back.")] = False,
) -> None:
    """Allow this device to run one delivered app, where its setting says delivered-after-approval."""
    from fedops_mqtt.apps import AppLibrary
    from fedops_mqtt.device.app_policy import app_folder
    from fedops_mqtt.device.identity import NoMacAddressError, get_mac_address
    from fedops_mqtt.device.journal import identity_dir, unapproved_app

    if not re.fullmatch(r"[0-9a-f]{64}", digest := digest.lower()):
        raise UsageError(f"{digest!r} is no digest: 64 hexadecimal digits, as the rejected start's reason names them")
    if settings.task_id is None:
        raise UsageError(
            "say of which client: --config bundle.toml, or --task-id TASK (and --mac, --state-dir as it has)"
        )
    try:
        folder = identity_dir(settings.state_dir, settings.task_id, settings.mac or get_mac_address())
    except NoMacAddressError as error:
        raise FatalError(str(error), ExitCode.CONFIG) from error
    if not folder.is_dir():
        problem = (
            f"no client of task {settings.task_id} has run here with this MAC and state folder: {folder} is missing"
        )
        raise FatalError(f"{problem}; give --mac and --state-dir as the client has them", ExitCode.CONFIG)
    library = AppLibrary(app_folder(folder))
    if withdraw:
        library.withdraw(digest)
    else:
        library.approve(digest)
    print(f"{'no longer approved' if withdraw else 'approved'}: {digest} for task {settings.task_id}")
    wanted = unapproved_app(folder)
    if not withdraw and wanted not in (None, digest):
        typer.echo(f"the start that was rejected last here is of another app: {wanted}", err=True)


DEFAULT_FLEET = Path("fleet")
"""As the verbs of a fleet have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSource:
    """A bundle that was read and found whole."""

    data: bytes
    bundle: AppBundle


def read_source(source: Path) -> AppSource:
    """Return the bundle that a file is, or that a project's folder makes.

    Raises:
        FatalError: it cannot be read or built, or is no bundle.
    """
    try:
        data = _build(source) if source.is_dir() else source.read_bytes()
        return AppSource(data=data, bundle=read_bundle(data, limits=BundleLimits(packed_bytes=len(data))))
    except OSError as error:
        raise FatalError(f"{source} cannot be read: {error.strerror or error}", ExitCode.FAILED) from error
    except AppRefusedError as error:
        advice = "name a file that `flwr build` made, or the project's folder"
        raise FatalError(f"{source} is no app that can be published: {error}; {advice}", ExitCode.FAILED) from error


def sign(source: AppSource, task_id: str, fleet: Path | None, *, manager: str) -> AppSignature | None:
    """Return the signature by the fleet's key; None, and a sentence about it, where there is no fleet.

    Raises:
        EnrolmentError: the fleet's folder or its key cannot be used.
        FatalError: there is no fleet, and the manager is on another machine.
    """
    from fedops_mqtt.enrolment import FleetFolder
    from fedops_mqtt.enrolment.fleet import REGISTER_FILE

    if fleet is None and (DEFAULT_FLEET / REGISTER_FILE).exists():
        fleet = DEFAULT_FLEET
    if fleet is not None:
        about = source.bundle
        return FleetFolder(fleet).app_signer().sign(digest=about.digest, task_id=task_id, version=about.version)
    if not is_loopback(urlsplit(manager).hostname or ""):
        advice = "an app for a manager on another machine must be signed: --fleet FOLDER names the fleet with the key"
        raise FatalError(advice, ExitCode.CONFIG)
    typer.echo("not signed: there is no fleet here (--fleet FOLDER). Only a manager on loopback takes it.", err=True)
    return None


def _build(folder: Path) -> bytes:
    """Return what `flwr build` makes of a folder."""
    from flwr.cli.build import build_fab_from_disk

    project = folder / "pyproject.toml"
    if not project.is_file():
        advice = "name the project's folder; `flwr new` makes one"
        raise FatalError(f"{folder} is no Flower project: it has no pyproject.toml; {advice}", ExitCode.FAILED)
    try:
        tomllib.loads(project.read_text(encoding="utf-8"))
    except ValueError as error:  # flwr's own error does not say which file it is
        raise FatalError(f"{project} is no TOML file in UTF-8: {error}", ExitCode.FAILED) from error
    try:
        with warnings.catch_warnings():  # flwr 1.41 uses a name of pathspec that is deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            return build_fab_from_disk(folder)
    except OSError:
        raise
    except (Exception, SystemExit) as error:  # flwr's own code, which raises click's, pathspec's and tomli's errors
        raise FatalError(f"{folder} cannot be built: {error}", ExitCode.FAILED) from error


Source = Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="What `flwr build` made, or the project's folder.")]
Task = Annotated[str, typer.Argument(metavar="TASK", help="The task whose app it is.")]
Fleet = Annotated[
    Path | None,
    typer.Option("--fleet", metavar="FOLDER", help="The fleet whose key signs it. [default: ./fleet, if there is one]"),
]

_COLUMNS = ("version", "is_current", "publisher", "name", "size", "published_at", "key_id", "digest")
_WHERE = " --site names the site to publish at."
_RUN_COLUMNS = ("run_id", "task_id", "outcome", "round", "run_config", "metrics", "model_path")


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
    from fedops_mqtt.cli.sites import the_manager

    with the_manager(settings, task=task, hint=_WHERE) as manager:
        _print_app(manager.with_site(_publish(manager, read_source(source), task, fleet)), is_json=json)


@shows("fedops-mqtt app list digits", "fedops-mqtt app list digits --json", model=CliSettings)
@takes_settings(CliSettings)
def list_(settings: CliSettings, task: Task, json: Json = False) -> None:
    """List the versions of a task's app, newest first."""
    from fedops_mqtt.cli.sites import print_all

    task_id = check_task_id(task)
    print_all(settings, lambda manager: manager.apps(task_id), _COLUMNS, is_json=json)


@shows("fedops-mqtt app show DIGEST", model=CliSettings)
@takes_settings(CliSettings)
def show(
    settings: CliSettings,
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="As `app list` prints it.")],
    json: Json = False,
) -> None:
    """Show a published app: whose it is, what it needs, its files, and the runs that trained with it."""
    from fedops_mqtt.cli.sites import find_everywhere

    for found in find_everywhere(settings, lambda manager: manager.app(digest), what=f"app {digest}"):
        if json:
            print_records_as_lines([found], is_json=True)
        else:
            _show_app(found)


def _show_app(found: "Record") -> None:
    where = {"site": found["site"]} if "site" in found else {}
    for each in found["published"]:
        shown = {"requires": ", ".join(each["requires"]), "config": as_pairs(each["config"])}
        print_records_as_lines([{"kind": "app", **where, **each, **shown}], is_json=False)
    print_records_as_lines(({"kind": "file", **where, **each} for each in found["files"]), is_json=False)
    for run in found["runs"]:
        facts = {name: run[name] for name in _RUN_COLUMNS}
        facts["run_config"] = as_pairs(run["run_config"])
        print_records_as_lines([{"kind": "run", **where, **facts}], is_json=False)


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
    from fedops_mqtt.cli.sites import the_manager

    with the_manager(settings, task=check_task_id(task)) as manager:
        _print_app(manager.with_site(manager.roll_back_app(task, version).model_dump(mode="json")), is_json=json)


@shows("fedops-mqtt app withdraw digits", model=CliSettings)
@takes_settings(CliSettings)
def withdraw(settings: CliSettings, task: Task) -> None:
    """Leave a task without a published app: its next run is as its devices and the tasks file say."""
    from fedops_mqtt.cli.sites import the_manager

    with the_manager(settings, task=check_task_id(task)) as manager:
        app = manager.withdraw_app(task)
    back = f"fedops-mqtt app rollback {task} {app.version}"
    print(f"withdrew {app.publisher}/{app.name} {app.version} from task {task}; {back} brings it back")


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
    rounds: Annotated[int | None, typer.Option(help="Rounds to train; default: that of the project.")] = None,
    clients: Annotated[
        str | None, typer.Option(metavar="MAC,…", help="Only these; default: all that are idle.")
    ] = None,
    run_config: RunConfig = None,
    fleet: Fleet = None,
    json: Json = False,
) -> None:
    """Build and publish a Flower project, start a run of it, and follow it to its end."""
    from fedops_mqtt.cli.sites import the_manager

    wanted: Record = {"num_rounds": rounds, "min_clients": min_clients, "clients": chosen_clients(clients)}
    wanted["run_config"] = settings_of_run(run_config)  # before anything is published
    app = read_source(source)
    task_id = task or app.bundle.name
    with the_manager(settings, task=task_id, hint=_WHERE) as manager:
        _print_app(manager.with_site(_publish(manager, app, task_id, fleet)), is_json=json)
        start_run(manager, task_id, wanted, waits=True, is_json=json)


def _publish(manager: "ManagerApi", app: AppSource, task: str, fleet: Path | None) -> "Record":
    signature = sign(app, check_task_id(task), fleet, manager=manager.url)
    return manager.publish_app(task, app.data, signature=signature).model_dump(mode="json")


def _print_app(app: "Record", *, is_json: bool) -> None:
    shown = ("site", "task_id", "version", "digest", "size", "key_id", "is_current")
    facts = {name: app[name] for name in shown if name in app}
    print_records_as_lines([app if is_json else {"kind": "app", **facts}], is_json=is_json)
