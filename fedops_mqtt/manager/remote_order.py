"""What a server on another machine is started with: one JSON document for `runtime/remote_launch`.

It holds the run's secret and credentials, so it travels by standard input, a file of this user or a Kubernetes Secret,
never in arguments. Settings that name a file of the manager's host come as the file's content.
"""

import base64
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedops_mqtt.manager.tasks import TaskConfig
from fedops_mqtt.runtime.settings import ENV_PREFIX, ServerSettings
from fedops_mqtt.runtime.settings_file import read_settings_file

LISTEN = "0.0.0.0:0"
ADVERTISE = "{address}"
"""Defaults of a server on another machine: it takes a free port and announces its own address."""

STATE_DIR = f"{ENV_PREFIX}STATE_DIR"
_BROKER = "broker"
_OF_THIS_HOST = frozenset({"state_dir", "run_secret_file", "final_status_file", "stop_reason_file"})


def store_of(task: TaskConfig, managers: str) -> str | None:
    """Return the store of a server elsewhere; None where the manager's is a folder and the task names no other."""
    own = task.env.get(f"{ENV_PREFIX}STORE")
    if own is None and task.config is not None:
        own = read_settings_file(task.config, ServerSettings).get("store")
    return str(own) if own else managers if "://" in managers else None


def end_nonce(secret: bytes, launch: int) -> str:
    """Return what the last line of a launch's log has to carry: whoever only writes into that log cannot guess it."""
    return hmac.new(secret, f"end of launch {launch}".encode(), "sha256").hexdigest()


def make_order(run_id: str, launch: int, task: TaskConfig, settings: Mapping[str, object], secret: bytes) -> bytes:
    """Return the order of a launch; `settings` are the server's, by name.

    Raises:
        OSError, SettingsFileError: a file that it needs cannot be read.
    """
    values: dict[str, object] = {"listen": LISTEN, "advertise": ADVERTISE}
    given = {name: value for name, value in settings.items() if value is not None and name not in _OF_THIS_HOST}
    if task.config is not None:  # the server's bundle, with credentials of its own
        values |= _bundle(task.config)
        given = {name: value for name, value in given.items() if not name.startswith(_BROKER)}
    values |= given
    values["store"] = store_of(task, str(settings.get("store", "")))
    files = {name: Path(str(values.pop(name))).read_bytes() for name in list(values) if name.endswith("_file")}
    files["run_secret_file"] = secret.hex().encode()
    environment = {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in values.items() if value is not None}
    return json.dumps(
        {
            "run_id": run_id,
            "launch": launch,
            "nonce": end_nonce(secret, launch),
            "command": list(task.command) if task.command else None,
            "module": task.module,
            "args": list(task.args),
            "cwd": str(task.cwd) if task.cwd else None,
            "environment": {**environment, **task.env},
            "files": {
                name: base64.b64encode(content).decode()
                for name, content in files.items()
                if f"{ENV_PREFIX}{name.upper()}" not in task.env
            },
        }
    ).encode()


def verb(task: TaskConfig, *arguments: str) -> list[str]:
    """Return the command line of `runtime/remote_launch` on the machine where a task's server runs."""
    folder = task.env.get(STATE_DIR)
    option = [f"--state-dir={folder}"] if folder else []
    return ["python3", "-m", "fedops_mqtt.runtime.remote_launch", *option, *arguments]


def _bundle(path: Path) -> dict[str, Any]:
    """Return a bundle's settings for an FL server, with absolute paths."""
    found = read_settings_file(path, ServerSettings)
    values = {name: found[name] for name in ServerSettings.model_fields if found.get(name) is not None}
    joined = {name: ",".join(map(str, value)) for name, value in values.items() if isinstance(value, list)}
    files = {name: path.parent / value for name, value in values.items() if name.endswith("_file")}
    return {**values, **joined, **files}
