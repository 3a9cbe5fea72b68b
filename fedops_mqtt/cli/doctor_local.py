"""What the doctor looks at on this machine: secret files, certificates, clock, ports, disk, a mosquitto.conf."""

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel

from fedops_mqtt.cli.fleet import WARN_DAYS
from fedops_mqtt.device.training_process import check_app
from fedops_mqtt.enrolment.authority import is_issued_by, is_pair, read_certificate
from fedops_mqtt.enrolment.roles import Role
from fedops_mqtt.runtime.machine import split_address
from fedops_mqtt.runtime.settings import IS_DELIVERED, BridgeSettings, DoctorSettings, ManagerSettings, config_file
from fedops_mqtt.runtime.settings_file import exposed_files


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `advice` is empty where nothing has to be done."""

    check: str
    level: Level
    found: str
    advice: str = ""

    def as_record(self) -> dict[str, str]:
        """Return it for a program."""
        return {"check": self.check, "level": self.level.value, "found": self.found, "advice": self.advice}


def ok(check: str, found: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(check=check, level=Level.OK, found=found)


def unknown(check: str, found: str) -> Finding:
    """Return that something could not be looked at from here."""
    return Finding(check=check, level=Level.UNKNOWN, found=found)


def warning(check: str, found: str, advice: str) -> Finding:
    """Return a finding about something that works, but not for ever or not everywhere."""
    return Finding(check=check, level=Level.WARNING, found=found, advice=advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """Return that something does not work, or stands open."""
    return Finding(check=check, level=Level.PROBLEM, found=found, advice=advice)


_MIN_FREE_BYTES = 200 * 1024 * 1024
"""A global model of 50 MB, a checkpoint, and some logs."""

_MIN_QUEUE = 10_000
_MOSQUITTOS_QUEUE = 1000
"""`max_queued_messages` where nothing is set (mosquitto.conf(5))."""

_FIRST_YEAR = 2026
"""A clock before this has never been set: no release is older."""

_NTP_TIMEOUT_S = 5


def look_at_files(settings: DoctorSettings) -> Iterator[Finding]:
    """Secret files that others can read; certificates that expire, or do not belong to their key or CA."""
    exposed = exposed_files(settings, config_file())
    for path in exposed:
        yield problem("files", f"{path} can be read by others on this machine", f"chmod 600 {path}")
    if not exposed:
        yield ok("files", "no other user can read keys and passwords")
    pairs = (
        ("certificate", settings.broker_cert_file, settings.broker_key_file, settings.broker_ca_file),
        ("line certificate", settings.line_cert_file, settings.line_key_file, settings.line_ca_file),
    )
    for check, certificate, key, ca in pairs:
        if certificate is not None:
            yield from _look_at_certificate(check, certificate, key, ca)


def _look_at_certificate(check: str, certificate: Path, key: Path | None, ca: Path | None) -> Iterator[Finding]:
    renew = "make a new one: `fedops-mqtt fleet renew NAME`"
    try:
        facts = read_certificate(certificate)
        has_key = key is None or is_pair(certificate, key)
        is_ours = ca is None or is_issued_by(certificate, ca)
    except (OSError, ValueError, TypeError) as error:
        yield problem(check, f"cannot be used: {error}", "copy the whole bundle here again")
        return
    if not has_key:
        yield problem(check, f"{key} is not the key of {certificate}", "copy the whole bundle here again")
    if not is_ours:
        yield problem(check, f"{certificate} was not issued by {ca}", "copy the whole bundle here again")
    trouble = facts.problem_at(datetime.now(UTC), warn_days=WARN_DAYS)
    if trouble is None:
        yield ok(check, f"{facts.common_name}, good until {facts.not_after:%Y-%m-%d}")
    elif trouble.startswith("expires in"):
        yield warning(check, f"{facts.common_name} {trouble}", renew)
    else:
        yield problem(check, f"{facts.common_name} {trouble}", renew)


def look_at_clock() -> Iterator[Finding]:
    """Whether this machine's clock is set and kept; the protocol does not need it, certificates and logs do."""
    advice = "set the clock and keep it: timedatectl set-ntp true"
    now = datetime.now(UTC)
    if now.year < _FIRST_YEAR:
        yield problem("clock", f"it is at {now:%Y-%m-%d %H:%M} UTC", advice)
        return
    match _is_synchronised():
        case True:
            yield ok("clock", "synchronised")
        case False:
            yield warning("clock", f"it is not synchronised; it is at {now:%Y-%m-%d %H:%M} UTC", advice)
        case None:
            yield unknown("clock", f"it is at {now:%Y-%m-%d %H:%M} UTC; whether it is kept right is not known here")


def _is_synchronised() -> bool | None:
    timedatectl = shutil.which("timedatectl")
    if timedatectl is None:
        return None
    command = [timedatectl, "show", "--property=NTPSynchronized", "--value"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=_NTP_TIMEOUT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(printed.strip())


def listening_addresses(settings: DoctorSettings, role: Role) -> list[str]:
    """Return where this identity's programs would listen; nowhere for a device without a shim."""
    usual: dict[Role, type[BaseModel]] = {Role.MANAGER: ManagerSettings, Role.BRIDGE: BridgeSettings}
    http = settings.http or (usual[role].model_fields["http"].default if role in usual else None)
    return [address for address in (http, settings.listen) if address and not address.endswith(":0")]


def look_at_ports(addresses: Sequence[str]) -> Iterator[Finding]:
    """Whether what is to listen could."""
    if not addresses:
        yield ok("port", "none is set to listen on: connections go outwards only")
    for address in addresses:
        host, port = split_address(address, default_host="127.0.0.1")
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.create_server((host, port), family=family):
                yield ok("port", f"{address} is free")
        except (OSError, OverflowError) as error:
            why = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
            advice = "if that is not our own process already running, choose another with --http"
            yield warning("port", f"{address}: {why}", advice)


def look_at_disk(folder: Path) -> Iterator[Finding]:
    """Whether the state folder can be written, and how much room is left."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    probe = there / ".fedops-mqtt-doctor"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield problem("disk", f"{there} cannot be written: {error.strerror}", "choose another with --state-dir")
        return
    free = shutil.disk_usage(there).free
    room = f"{free // 1024**2} MB free at {there}"
    if free < _MIN_FREE_BYTES:
        yield problem("disk", room, "make room: journals, models and checkpoints need it")
    else:
        yield ok("disk", room)


def look_at_app(settings: DoctorSettings) -> Iterator[Finding]:
    """Whether a device's app can be imported."""
    if settings.app is None or settings.app in IS_DELIVERED:
        return
    trouble = asyncio.run(check_app(settings.app, (str(Path.cwd()),), state_folder=settings.state_dir))
    if trouble is None:
        yield ok("app", f"{settings.app} can be imported")
    else:
        yield problem("app", trouble, "correct `app`; run this in the daemon's folder, with its PYTHONPATH")


def look_at_broker_config(path: Path) -> Iterator[Finding]:
    """What a mosquitto.conf leaves open."""
    try:
        written = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        yield problem("broker config", f"{path}: {error.strerror}", "run this on the broker's machine, as its user")
        return
    lines = [words for words in map(str.split, written) if words and not words[0].startswith("#")]
    values = {line[0]: line[-1] for line in lines}
    yield _look_at_queue(values.get("max_queued_messages", str(_MOSQUITTOS_QUEUE)))
    if values.get("allow_anonymous") == "true":
        yield problem(
            "broker config", "allow_anonymous true", "set it to false; broker-config/mosquitto.conf shows how"
        )
    if "acl_file" not in values and "plugin" not in values:
        yield problem("broker config", "there is no acl_file", "any client may publish anything: use broker-config/acl")
    if "max_packet_size" not in values:
        yield warning(
            "broker config", "there is no max_packet_size", "set it to 393216: one packet can fill the memory"
        )
    yield from _look_at_listeners(lines)


def _look_at_queue(limit: str) -> Finding:
    """Judge `max_queued_messages` (mosquitto.conf(5)); what each number does was seen with mosquitto 2.0.11."""
    found = f"max_queued_messages is {limit}"
    if not limit.isdecimal():
        return problem("broker config", found, "it must be a number: set it to 100000")
    if int(limit) == 0:
        return problem("broker config", found, "with it a denied publish ends a connection: set it to 100000")
    if int(limit) < _MIN_QUEUE:
        advice = "set it to 100000: fewer lose statuses silently in a larger fleet"
        return warning("broker config", found, advice)
    return ok("broker config", found)


def _look_at_listeners(lines: list[list[str]]) -> Iterator[Finding]:
    blocks: list[tuple[str, set[str]]] = []
    for line in lines:
        if line[0] == "listener":
            blocks.append((" ".join(line[1:]), set()))
        elif blocks:
            blocks[-1][1].add(line[0])
    for where, directives in blocks:
        if "certfile" not in directives:
            yield problem("broker config", f"listener {where} is without TLS", "give it cafile, certfile and keyfile")
        elif "use_username_as_clientid" not in directives:
            advice = "add `use_username_as_clientid true` below it: any client can take another's client id"
            yield problem("broker config", f"listener {where} does not bind client ids", advice)
        else:
            yield ok("broker config", f"listener {where} has TLS and binds client ids")
