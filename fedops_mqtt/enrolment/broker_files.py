"""The broker's folder of a fleet: its configuration, ACL, passwords, certificate and revocation list.

Shipped files name `/etc/mosquitto/fedops`; a fleet whose broker's files stand elsewhere gets them rewritten.
"""

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from fedops_mqtt.enrolment.errors import EnrolmentError
from fedops_mqtt.enrolment.permissions import render_acl
from fedops_mqtt.enrolment.register import EnrolledIdentity, Ports, Register
from fedops_mqtt.runtime.files import write_atomically

SYSTEM_DIR = "/etc/mosquitto/fedops"
"""Where the shipped configuration expects its files."""

CONFIG_FILE = "mosquitto.conf"
ACL_FILE = "acl"
PASSWORD_FILE = "passwd"  # noqa: S105 - a file's name
CA_FILE = "ca.crt"
CRL_FILE = "crl.pem"
CERTIFICATE_FILE = "broker.crt"
KEY_FILE = "broker.key"

_ACCESS_BLOCK_BEGIN = "# Users with a password."
_ACCESS_BLOCK_END = "/acl\n"
"""The access rules of the shipped configuration stand between these."""

_PLUGIN_PATHS = (
    "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so",
    "/usr/lib/aarch64-linux-gnu/mosquitto_dynamic_security.so",
    "/usr/lib/arm-linux-gnueabihf/mosquitto_dynamic_security.so",
    "/usr/lib/mosquitto_dynamic_security.so",
)
"""Where packages put it."""

_PLUGIN_LINES = """\
# Users, passwords and rules are in the plugin's file, which `fedops-mqtt fleet dynsec` writes. The plugin takes changes
# while it runs and writes them there itself, so the file must be the broker's own.
plugin {plugin}
plugin_opt_config_file {folder}/dynamic-security.json
"""

_PID_FILE = "/run/mosquitto/mosquitto.pid"
_DATA_DIR = "/var/lib/mosquitto/"


def render_broker_config(shipped: str, register: Register) -> str:
    """Return the shipped configuration with a fleet's folder and ports; beyond the system's folder it stands alone."""
    text = shipped
    folder = register.broker_dir.rstrip("/")
    if folder != SYSTEM_DIR:
        text = (
            text.replace(f"{SYSTEM_DIR}/", f"{folder}/")
            .replace(_PID_FILE, f"{folder}/mosquitto.pid")
            .replace(f"persistence_location {_DATA_DIR}", f"persistence_location {folder}/")
        )
    for name, shipped_port in Ports().model_dump().items():
        text = text.replace(f"\nlistener {shipped_port}\n", f"\nlistener {getattr(register.ports, name)}\n")
    return text


def render_dynamic_security_config(config: str, register: Register) -> str:
    """Return a broker's configuration with the dynamic-security plugin in the place of ACL and password file."""
    head, mark, rest = config.partition(_ACCESS_BLOCK_BEGIN)
    _, _, tail = rest.partition(_ACCESS_BLOCK_END)
    if not mark or not tail:
        raise EnrolmentError(f"{CONFIG_FILE} was changed beyond what this program can edit: put the plugin in by hand")
    return f"{head}{_PLUGIN_LINES.format(plugin=find_plugin(), folder=register.broker_dir.rstrip('/'))}{tail}"


def find_plugin() -> Path:
    """Return where the dynamic-security plugin is on this machine, or would be on Debian."""
    return next((path for path in map(Path, _PLUGIN_PATHS) if path.exists()), Path(_PLUGIN_PATHS[0]))


def write_access(folder: Path, identities: Iterable[EnrolledIdentity]) -> None:
    """Write who may do what, and the password entries; revoked identities lose theirs."""
    everybody = list(identities)
    acl = folder / ACL_FILE
    write_atomically(acl, render_acl(acl.read_text(encoding="utf-8"), everybody).encode())
    lines = [each.password.as_line(each.name) for each in everybody if each.password and not each.is_revoked]
    write_atomically(folder / PASSWORD_FILE, "".join(f"{line}\n" for line in sorted(lines)).encode())


def reload_broker(folder: Path) -> bool:
    """Make the broker on this machine read its files again; False when it does not run here, or is another one."""
    for line in (folder / CONFIG_FILE).read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(" ")
        if name == "pid_file":
            return _hang_up(Path(value.strip()))
    return False


def _hang_up(pid_file: Path) -> bool:
    with suppress(OSError, ValueError, psutil.Error):
        pid = int(pid_file.read_text(encoding="ascii"))
        if psutil.Process(pid).name() == "mosquitto":
            os.kill(pid, signal.SIGHUP)
            return True
    return False
