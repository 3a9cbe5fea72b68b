"""A bundle: the folder that an identity takes away, with `bundle.toml`, the CA's certificate, and its own keys.

Paths in the file are relative to it, so the folder works wherever it is put.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedops_mqtt.enrolment.authority import Credentials
from fedops_mqtt.enrolment.register import EnrolledIdentity, Ports
from fedops_mqtt.enrolment.roles import Role
from fedops_mqtt.protocol import level_to_mac
from fedops_mqtt.runtime.files import make_private_folder, write_atomically

BUNDLE_FILE = "bundle.toml"
CA_FILE = "ca.crt"
CERTIFICATE_FILE = "client.crt"
KEY_FILE = "client.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleContent:
    """What goes into a bundle: credentials or a password, never both."""

    identity: EnrolledIdentity
    broker_hosts: tuple[str, ...]
    """The preferred one first."""
    ports: Ports
    ca_certificates: bytes
    credentials: Credentials | None
    password: str | None
    app: str | None = None
    app_signers: tuple[str, ...] = ()
    """Public keys of whoever may sign apps, for a device and for a manager."""


def write_bundle(folder: Path, content: BundleContent) -> Path:
    """Write a bundle and return its settings file."""
    make_private_folder(folder)
    write_atomically(folder / CA_FILE, content.ca_certificates)
    if content.credentials is not None:
        write_atomically(folder / CERTIFICATE_FILE, content.credentials.certificate)
        write_atomically(folder / KEY_FILE, content.credentials.key)
    else:
        for name in (CERTIFICATE_FILE, KEY_FILE):
            (folder / name).unlink(missing_ok=True)
    write_atomically(folder / BUNDLE_FILE, render_bundle(content).encode())
    return folder / BUNDLE_FILE


def render_bundle(content: BundleContent) -> str:
    """Return the settings file: every line is a setting of the role's verb."""
    identity = content.identity
    lines = [
        f"# {identity.role} {identity.name}: fedops-mqtt {_VERBS[identity.role]} --config {BUNDLE_FILE}",
        "# Environment (FEDOPS_MQTT_<NAME>) and options outweigh this file. Keep it and the keys to yourself.",
        *_as_toml({"role": identity.role.value}),
        *_as_toml(_bus(content)),
        *_as_toml(_own(identity)),
        *(_as_toml({"app_signers": ",".join(content.app_signers)}) if content.app_signers else []),
    ]
    if identity.role is Role.DEVICE:
        lines += _device_choices(content)
    return "\n".join(lines) + "\n"


_VERBS = {
    Role.DEVICE: "client",
    Role.MANAGER: "manager",
    Role.SERVER: "doctor",
    Role.DASHBOARD: "watch",
    Role.BRIDGE: "bridge",
}


def _bus(content: BundleContent) -> Mapping[str, str]:
    hosts = [f"[{host}]" if ":" in host else host for host in content.broker_hosts]
    if content.credentials is None:
        return {
            "broker": ",".join(f"mqtts://{host}:{content.ports.password}" for host in hosts),
            "broker_user": content.identity.name,
            "broker_password": content.password or "",
            "broker_ca_file": CA_FILE,
        }
    return {
        "broker": ",".join(f"mqtts://{host}:{content.ports.certificate}" for host in hosts),
        "broker_user": content.identity.name,
        "broker_ca_file": CA_FILE,
        "broker_cert_file": CERTIFICATE_FILE,
        "broker_key_file": KEY_FILE,
    }


def _own(identity: EnrolledIdentity) -> Mapping[str, str]:
    match identity.role:
        case Role.DEVICE:
            return {"mac": level_to_mac(identity.name), "line_ca_file": CA_FILE}
        case Role.SERVER if identity.hosts:
            return {
                "task_id": identity.tasks[0],
                "listen": "0.0.0.0:0",
                "advertise": identity.hosts[0],
                "line_cert_file": CERTIFICATE_FILE,
                "line_key_file": KEY_FILE,
            }
        case Role.SERVER | Role.BRIDGE if identity.tasks:
            return {"task_id": identity.tasks[0]}
        case Role.DASHBOARD if len(identity.tasks) == 1:
            return {"task_id": identity.tasks[0]}
        case _:
            return {}


def _device_choices(content: BundleContent) -> list[str]:
    tasks = content.identity.tasks
    return [
        *(_as_toml({"task_id": tasks[0]}) if tasks else ['# task_id = "digits"      # which task it takes part in']),
        *(
            _as_toml({"app": content.app})
            if content.app
            else ['# app = "my_task:app"     # its Flower ClientApp, or "delivered"']
        ),
    ]


def _as_toml(values: Mapping[str, str]) -> list[str]:
    """Return `name = "value"` lines; a JSON string is a TOML basic string."""
    return [f"{name} = {json.dumps(value)}" for name, value in values.items()]
