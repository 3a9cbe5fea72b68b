"""The verb `doctor`: everything that must be right for an identity to take part, and what to do where it is not."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from fedops_mqtt.cli.options import Json, shows, takes_settings
from fedops_mqtt.cli.output import print_records
from fedops_mqtt.runtime.settings import DoctorSettings
from fedops_mqtt.runtime.systemd import ExitCode

_COLUMNS = ("level", "check", "found", "advice")


@shows(
    "fedops-mqtt doctor --config bundle.toml",
    "fedops-mqtt doctor --broker-conf /etc/mosquitto/fedops/mosquitto.conf --no-bus",
    model=DoctorSettings,
)
@takes_settings(DoctorSettings)
def doctor(
    settings: DoctorSettings,
    broker_conf: Annotated[Path | None, typer.Option(help="A mosquitto.conf on this machine, to be read too.")] = None,
    no_bus: Annotated[
        bool, typer.Option("--no-bus", help="Do not connect; a running daemon is not disturbed.")
    ] = False,
    json: Json = False,
) -> None:
    """Check broker, TLS, credentials, ACL, queues, clock, ports, disk and app.

    It connects as the identity whose settings it has: a daemon of that identity loses its connection for a moment.
    """
    from fedops_mqtt.cli.doctor_bus import look_at_bus
    from fedops_mqtt.cli.doctor_local import (
        Level,
        listening_addresses,
        look_at_app,
        look_at_broker_config,
        look_at_clock,
        look_at_disk,
        look_at_files,
        look_at_ports,
    )
    from fedops_mqtt.enrolment import Role

    role = Role(settings.role or _guess_role(settings))
    findings = [
        *look_at_files(settings),
        *look_at_clock(),
        *look_at_disk(settings.state_dir),
        *look_at_app(settings),
        *look_at_ports(listening_addresses(settings, role)),
        *(look_at_broker_config(broker_conf) if broker_conf else ()),
        *([] if no_bus else asyncio.run(look_at_bus(settings, role))),
    ]
    print_records([each.as_record() for each in findings], _COLUMNS, is_json=json)
    if any(each.level is Level.PROBLEM for each in findings):
        raise SystemExit(ExitCode.FAILED)


def _guess_role(settings: DoctorSettings) -> str:
    """Return the most likely role of an identity whose settings do not name one."""
    user = settings.broker_user or ""
    if settings.mac:
        return "device"
    if user.startswith("manager"):
        return "manager"
    return "server" if settings.task_id else "dashboard"
