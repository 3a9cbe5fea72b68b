"""The verbs for a fleet's credentials: fleet init, enrol, renew, revoke, list, dynsec, nats.

Keys and passwords go into files of mode 0600 and are never printed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from click import UsageError

from fedops_mqtt.cli.options import Json, add_verbs, shows, takes_settings
from fedops_mqtt.cli.output import print_records
from fedops_mqtt.runtime.files import why_unreadable
from fedops_mqtt.runtime.settings import FleetSettings

if TYPE_CHECKING:
    from fedops_mqtt.enrolment import EnrolledIdentity, FleetFolder

_COLUMNS = ("name", "role", "tasks", "credentials", "expires", "status")
WARN_DAYS = 30
"""A certificate that expires within this is pointed out; renewing leaves the old one valid."""

_PLUGIN_ADVICE = (
    "with the dynamic-security plugin: it reads its file at a restart only; to change something at once, as a manager: "
    "mosquitto_ctrl ... dynsec disableClient NAME (or createClient, addClientRole)"
)

_NATS_ADVICE = "with NATS: copy nats-users.conf to every server, and there: nats-server --signal reload"

Names = Annotated[list[str] | None, typer.Argument(help="MACs of devices, or names of other identities.")]
Hosts = Annotated[list[str] | None, typer.Option("--host", help="Name or address under which it is reached; repeat.")]
EveryHost = Annotated[
    bool, typer.Option("--every-host", help="Bundles name a broker at each --host, not only at the first.")
]
Days = Annotated[int | None, typer.Option(min=1, help="How long the certificate holds. [default: 825]")]


@shows(
    "fedops-mqtt fleet init --host broker.example.org",
    "fedops-mqtt fleet init --host 192.168.1.10 --broker-dir /etc/mosquitto/fedops",
)
@takes_settings(FleetSettings)
def init(
    settings: FleetSettings,
    host: Hosts = None,
    every_host: EveryHost = False,
    broker_dir: Annotated[
        str | None, typer.Option(help="Where the broker's files will stand on its machine. [default: where made]")
    ] = None,
    port: Annotated[int, typer.Option(help="Listener for certificates.")] = 8883,
    password_port: Annotated[int, typer.Option(help="Listener for passwords.")] = 8884,
    websocket_port: Annotated[int, typer.Option(help="Listener for browsers.")] = 9001,
    days: Days = None,
) -> None:
    """Make a fleet: a private CA, the broker's files, and the manager's credentials."""
    from fedops_mqtt.bus.mosquitto import find_config
    from fedops_mqtt.enrolment import DEVICE_DAYS, Ports, init_fleet

    fleet = init_fleet(
        settings.fleet_dir,
        hosts=host or [],
        is_every_host_a_broker=every_host,
        shipped=find_config("mosquitto.conf").parent,
        broker_dir=broker_dir,
        ports=Ports(certificate=port, password=password_port, websockets=websocket_port),
        days=days or DEVICE_DAYS,
    )
    print(f"made {fleet.folder}; keep its ca.key and app-signing.key safe, away from broker and manager")
    print(f"broker:  {fleet.broker_folder}  (for {fleet.register.broker_dir})")
    print(f"manager: {fleet.folder / 'bundles' / 'manager' / 'bundle.toml'}")


@shows(
    "fedops-mqtt fleet enrol aa:bb:cc:dd:ee:ff --task digits --app my_task:app",
    "fedops-mqtt fleet enrol --role server server-digits --task digits --host fl.example.org",
    "fedops-mqtt fleet enrol --role dashboard lab-screen --password",
)
@takes_settings(FleetSettings)
def enrol(
    settings: FleetSettings,
    names: Names = None,
    role: Annotated[str, typer.Option(help="device, manager, server, dashboard or bridge.")] = "device",
    task: Annotated[list[str] | None, typer.Option("--task", help="Its task; repeat. [default: every task]")] = None,
    host: Hosts = None,
    app: Annotated[str | None, typer.Option(help="MODULE:ATTRIBUTE or delivered, for a device's settings.")] = None,
    password: Annotated[bool, typer.Option("--password", help="A password instead of a certificate.")] = False,
    names_from: Annotated[Path | None, typer.Option("--from", help="A file with a name a line.", exists=True)] = None,
    days: Days = None,
) -> None:
    """Make credentials and a settings file for a device, or for another role."""
    from fedops_mqtt.enrolment import DEVICE_DAYS, EnrolmentRequest, FleetFolder, Role

    if role not in list(Role):
        raise UsageError(f"--role {role}: choose one of {', '.join(Role)}")
    fleet = FleetFolder(settings.fleet_dir)
    requests = [
        EnrolmentRequest(
            role=Role(role),
            name=name,
            tasks=task or [],
            hosts=host or [],
            app=app,
            has_password=password,
            days=days or DEVICE_DAYS,
        )
        for name in _all_names(names, names_from)
    ]
    for bundle in fleet.enrol_all(requests):
        print(bundle)
    _reload_broker(fleet)


@shows(
    "fedops-mqtt fleet renew aa:bb:cc:dd:ee:ff",
    "fedops-mqtt fleet renew broker",
    "fedops-mqtt fleet renew broker --host a.example.org --host b.example.org --every-host",
)
@takes_settings(FleetSettings)
def renew(
    settings: FleetSettings,
    names: Names = None,
    app: Annotated[str | None, typer.Option(help="MODULE:ATTRIBUTE or delivered, for a device's settings.")] = None,
    revoke_old: Annotated[
        bool, typer.Option("--revoke-old", help="Make nothing; take back all certificates but the newest.")
    ] = False,
    host: Annotated[
        list[str] | None,
        typer.Option(help="With broker: where it is reached from now on; repeat."),
    ] = None,
    every_host: EveryHost = False,
    days: Days = None,
) -> None:
    """Make new keys; the old certificate stays good until it expires or `--revoke-old` ends it.

    Bundles that are made after `renew broker --host` name the broker's new hosts: renew the devices then.
    """
    from fedops_mqtt.enrolment import DEVICE_DAYS, FleetFolder

    fleet = FleetFolder(settings.fleet_dir)
    wanted = _all_names(names, None)
    if (host or every_host) and (revoke_old or wanted != ["broker"] or not host):
        raise UsageError("--host is for `fleet renew broker`, and --every-host goes with it")
    for name in wanted:
        if revoke_old:
            print(f"took back {fleet.revoke_old(name)} old certificates of {name}")
        elif name == "broker":
            fleet.renew_broker(days=days or DEVICE_DAYS, hosts=host or [], is_every_host_a_broker=every_host)
            print(fleet.broker_folder / "broker.crt")
        else:
            print(fleet.renew(name, app=app, days=days or DEVICE_DAYS))
    _reload_broker(fleet)


@shows("fedops-mqtt fleet revoke aa:bb:cc:dd:ee:ff")
@takes_settings(FleetSettings)
def revoke(settings: FleetSettings, names: Names = None) -> None:
    """Revoke all credentials of an identity."""
    from fedops_mqtt.enrolment import FleetFolder

    fleet = FleetFolder(settings.fleet_dir)
    for name in _all_names(names, None):
        identity = fleet.revoke(name)
        print(f"revoked {identity.role} {identity.name}")
    _reload_broker(fleet)


@shows("fedops-mqtt fleet list", "fedops-mqtt fleet list --json")
@takes_settings(FleetSettings)
def list_identities(settings: FleetSettings, json: Json = False) -> None:
    """List all identities that are or were enrolled."""
    from fedops_mqtt.enrolment import FleetFolder

    records = [_as_record(each) for each in FleetFolder(settings.fleet_dir).list_identities()]
    print_records(records, _COLUMNS, is_json=json)


@shows("fedops-mqtt fleet dynsec")
@takes_settings(FleetSettings)
def dynsec(settings: FleetSettings) -> None:
    """Write the fleet as roles and clients of mosquitto's dynamic-security plugin."""
    from fedops_mqtt.enrolment import FleetFolder

    print(FleetFolder(settings.fleet_dir).write_dynamic_security())


@shows("fedops-mqtt fleet nats")
@takes_settings(FleetSettings)
def nats(settings: FleetSettings) -> None:
    """Write the fleet as users and permissions for a cluster of NATS servers."""
    from fedops_mqtt.bus.mosquitto import find_config
    from fedops_mqtt.enrolment import FleetFolder
    from fedops_mqtt.enrolment.permissions import can_use_nats

    fleet = FleetFolder(settings.fleet_dir)
    print(fleet.write_nats(find_config("ha/cluster/nats.conf").read_text(encoding="utf-8")))
    for each in fleet.list_identities():
        if each.password and not can_use_nats(each):
            print(f"left out: {each.name} has a password; NATS takes certificates (`fleet revoke`, then `fleet enrol`)")
    _reload_broker(fleet)


VERBS: dict[str, Callable[..., None]] = {
    "init": init,
    "enrol": enrol,
    "renew": renew,
    "revoke": revoke,
    "list": list_identities,
    "dynsec": dynsec,
    "nats": nats,
}


def make_fleet_app() -> typer.Typer:
    """Return the group of verbs under `fedops-mqtt fleet`."""
    return add_verbs(typer.Typer(help="Make and look after the credentials of a fleet.", no_args_is_help=True), VERBS)


def _all_names(names: Sequence[str] | None, file: Path | None) -> list[str]:
    try:
        written = file.read_text(encoding="utf-8-sig").splitlines() if file else []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--from {file} cannot be read: {why_unreadable(error)}") from error
    wanted = [*(names or []), *(line.strip() for line in written if line.strip() and not line.startswith("#"))]
    if not wanted:
        raise UsageError("say who: a device's MAC, or another identity's name")
    return wanted


def _reload_broker(fleet: "FleetFolder") -> None:
    if fleet.has_plugin:
        print(_PLUGIN_ADVICE)
    if fleet.has_nats:
        print(_NATS_ADVICE)
    if fleet.reload_broker():
        print("the broker reads its files again")
        return
    made, wanted = fleet.broker_folder.resolve(), fleet.register.broker_dir
    carry = "" if str(made) == wanted else f"copy {made} to {wanted} on the broker's machine; "
    print(f"{carry}let the broker read its files again: systemctl reload mosquitto")


def _as_record(identity: "EnrolledIdentity") -> dict[str, object]:
    from datetime import UTC, datetime, timedelta

    expires = identity.not_after
    status = "enrolled"
    if identity.is_revoked:
        status = "revoked"
    elif expires is not None and expires < datetime.now(UTC):
        status = "expired"
    elif expires is not None and expires < datetime.now(UTC) + timedelta(days=WARN_DAYS):
        status = "expires soon"
    return {
        "name": identity.name,
        "role": identity.role.value,
        "tasks": ",".join(identity.tasks) or "every",
        "credentials": "password" if identity.password else "certificate",
        "expires": expires.date().isoformat() if expires else None,
        "status": status,
    }
