"""A control group with little memory, for the kernel to kill in: where this machine lets its user make one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from device_plan import FOLDER

LIMIT_BYTES = 128 * 1024**2
_ROOT = Path("/sys/fs/cgroup")
_PLACES = ((_ROOT / "memory", "memory.limit_in_bytes"), (_ROOT, "memory.max"))
"""Where groups of the memory controller are made, and the file of their limit: cgroup v1, v2."""


def _note(folder: Path) -> Path:
    return folder / "memory-group"


@contextmanager
def memory_group(folder: Path) -> Iterator[Path | None]:
    """Make a group that `enter` finds by this folder; None where that is not allowed. Leave it empty."""
    group = _make(f"fedops-test-{uuid.uuid4().hex}")
    if group is None:
        yield None
        return
    _note(folder).write_text(str(group))
    try:
        yield group
    finally:
        group.rmdir()


def _make(name: str) -> Path | None:
    for place, limit in _PLACES:
        group = place / name
        with suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(LIMIT_BYTES))
            except OSError:
                group.rmdir()
                continue
            return group
    return None


def enter() -> bool:
    """Move this process into the group of its test, if there is one."""
    note = _note(Path(os.environ[FOLDER]))
    if not note.exists():
        return False
    (Path(note.read_text()) / "cgroup.procs").write_text(str(os.getpid()))
    return True


def kills_in(group: Path) -> int:
    """Return how many processes the kernel has killed in a group for want of memory."""
    told = next(group / name for name in ("memory.oom_control", "memory.events") if (group / name).exists())
    return int(dict(line.split() for line in told.read_text().splitlines())["oom_kill"])
