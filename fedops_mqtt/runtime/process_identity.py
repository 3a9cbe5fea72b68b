"""Which process is meant: by its id and key, or by its environment; which boot of the host. Only light imports."""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_TICKS = 19
"""Place of the start time in `/proc/PID/stat`, counted after the program's name."""
_START_SLACK_S = 2.0
"""Times of a start are counted from the boot's, in whole seconds, which moves when the clock is set a little; no id
comes again so soon."""


def boot_id() -> str | None:
    """Return what tells this boot of this host from all others; None where the system does not know it."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None


def since_boot_s() -> float:
    """Return the time since the boot, that of a suspended host included; only where there is a `boot_id`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process_key(pid: int) -> str | None:
    """Return what tells a process from earlier and later ones with its id; None for one that has ended.

    On Linux it is the boot, and the process's start in ticks after it: a time of day moves when the clock is set.
    """
    try:
        if (boot := boot_id()) is None:
            return f"{psutil.Process(pid).create_time():.2f}"
        facts = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{boot}:{int(facts[_START_TICKS])}"
    except (OSError, psutil.NoSuchProcess):
        return None


def key_of_started(pid: int, started_at: float) -> str | None:
    """Return the key of a process that began at this time of day; None where none of this id did."""
    try:
        is_it = abs(psutil.Process(pid).create_time() - started_at) < _START_SLACK_S
    except psutil.NoSuchProcess:
        return None
    return process_key(pid) if is_it else None


def is_process(pid: int | None, key: str | None) -> bool:
    """Return whether the process of this id and key runs; a zombie does not."""
    if pid is None or key is None or process_key(pid) != key:
        return False
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def is_given_anew(pid: int, key: str | None) -> bool:
    """Return whether the id of a process is another one's by now; None as key: of a process that has ended.

    No system gives an id anew while a process of its group is left: what has it now is a stranger, and nothing is left.
    """
    return process_key(pid) not in (None, key)


def find_processes(environment: Mapping[str, str]) -> Iterator[psutil.Process]:
    """Yield the running processes of this user that have these variables in their environment."""
    for pid in psutil.pids():  # `process_iter` keeps what it found, also a process that had this id before
        try:
            process = psutil.Process(pid)
            if environment.items() <= process.environ().items() and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
