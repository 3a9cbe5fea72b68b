"""Finds and ends what a training process left behind: its group, and descendants that left the group.

Every training process carries a mark in its environment that its children inherit; only processes so marked are ended.
"""

import os
import signal
from pathlib import Path

MARK = "FEDOPS_MQTT_TRAINING"
"""Environment variable that carries the mark."""

_PROC = Path("/proc")
_MAX_SWEEPS = 20
"""A process may fork while we look; each sweep catches what the one before saw being born."""


def kill_group(pgid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process group, if it is still there."""
    try:
        os.killpg(pgid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        return  # macOS says so of a group of zombies


def sweep(mark: str) -> int:
    """Kill every process whose mark starts with `mark` and return how many there were; Linux only, else 0."""
    killed: set[int] = set()
    for _ in range(_MAX_SWEEPS):
        found = set(_marked(f"{MARK}={mark}".encode())) - killed
        if not found:
            break
        for pid in found:
            _kill(pid)
        killed |= found
    return len(killed)


def _marked(entry: bytes) -> list[int]:
    if not _PROC.is_dir():
        return []
    return [int(path.name) for path in _PROC.iterdir() if path.name.isdigit() and _carries(path, entry)]


def _carries(path: Path, entry: bytes) -> bool:
    try:
        environ = (path / "environ").read_bytes()
    except OSError:
        return False  # gone meanwhile, or another user's
    return any(variable.startswith(entry) for variable in environ.split(b"\0"))


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
