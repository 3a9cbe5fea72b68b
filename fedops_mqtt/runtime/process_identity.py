"""Which process is meant: by its id and start time, or by its environment. Only light imports."""

from collections.abc import Iterator, Mapping
from contextlib import suppress

import psutil

_START_TIME_SLACK_S = 0.05
"""psutil computes a start time from the boot time and clock ticks of 10 ms."""


def start_time(pid: int) -> float:
    """Return when a process began, s since 1970; 0 for one that has ended."""
    with suppress(psutil.NoSuchProcess):
        return float(psutil.Process(pid).create_time())
    return 0.0


def is_process(pid: int | None, started_at: float) -> bool:
    """Return whether a process of this id and start time runs; a zombie does not."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid) if pid is not None else None
        if process is not None and abs(process.create_time() - started_at) <= _START_TIME_SLACK_S:
            return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def find_processes(environment: Mapping[str, str]) -> Iterator[psutil.Process]:
    """Yield the running processes of this user that have these variables in their environment."""
    for process in psutil.process_iter():
        try:
            if environment.items() <= process.environ().items() and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
