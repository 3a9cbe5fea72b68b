"""The demo's reaper: a process that outlives the demo for a moment and removes everything that the demo started.

It waits for the end of its stdin, which comes however the demo ends, `kill -9` included. Then it ends every process
that has the demo's mark in its environment, and no other, and removes the demo's folders.

    python -m fedops_mqtt.demo.reaper MARK TEMPORARY_FOLDER MODEL_FOLDER

A line `keep` on stdin keeps the model folder. SIGTERM kills the processes without waiting for their orderly end.
"""

import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from fedops_mqtt.runtime.process_identity import find_processes

MARK = "FEDOPS_DEMO"
"""Environment variable that every process of a demo inherits; not one of our settings, which end at each process."""

KEEP = b"keep\n"

_GRACE_S = 8.0
"""For last statuses on the bus and the end of trainings, before the remaining processes are killed."""
_KILL_S = 5.0
"""A killed process has ended within this, unless the kernel holds it."""
_LOOK_S = 0.1


def main(mark: str, temporary: Path, models: Path) -> None:
    """Wait for the demo's end, then clear up."""
    hurry = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: hurry.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    is_kept = KEEP in sys.stdin.buffer.readlines()
    end_marked(mark, is_hurried=hurry.is_set)
    shutil.rmtree(temporary, ignore_errors=True)
    if not is_kept:
        shutil.rmtree(models, ignore_errors=True)
        with suppress(OSError):  # other demos' models are in it
            models.parent.rmdir()


def end_marked(mark: str, *, is_hurried: Callable[[], bool], name: str = MARK, grace_s: float = _GRACE_S) -> None:
    """Send SIGTERM to every marked process, and kill those that do not end; also those that start meanwhile."""
    signalled: set[int] = set()
    deadline = time.monotonic() + grace_s
    while (left := list(marked(mark, name))) and time.monotonic() < deadline and not is_hurried():
        for process in left:
            if process.pid not in signalled:
                signalled.add(process.pid)
                _signal(process, signal.SIGTERM)
        time.sleep(_LOOK_S)
    deadline = time.monotonic() + _KILL_S
    while (left := list(marked(mark, name))) and time.monotonic() < deadline:
        for process in left:
            _signal(process, signal.SIGKILL)
        time.sleep(_LOOK_S)


def marked(mark: str, name: str = MARK) -> Iterator[psutil.Process]:
    """Yield the running processes that have a mark in the variable `name`."""
    return find_processes({name: mark})


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
