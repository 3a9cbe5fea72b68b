"""The signals that end a process, its notifications to a service manager (sd_notify(3)), and its exit codes.

The watchdog is notified from a task in the event loop: a loop that is blocked counts as dead.
"""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from enum import IntEnum

from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.settings import ServiceManager, service_manager

_NOTIFICATIONS_PER_WATCHDOG = 3
"""sd_watchdog_enabled(3) recommends half the time; a third leaves room for a machine under load."""


def end_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask this process to end.

    SIGHUP comes when its terminal or SSH session has ended; where that is ignored (`nohup`) it stays so.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return signal.SIGTERM, signal.SIGINT
    return signal.SIGTERM, signal.SIGINT, hangup


@contextmanager
def on_end_signal(end: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `end` in the running event loop at each signal that asks for it; nothing in a thread other than the main."""
    loop = asyncio.get_running_loop()
    taken: list[signal.Signals] = []
    with suppress(ValueError, RuntimeError):
        for number in end_signals():
            loop.add_signal_handler(number, end, number)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


@asynccontextmanager
async def supervised(manager: ServiceManager | None = None) -> AsyncIterator[None]:
    """Notify ready, notify the watchdog while the block runs, and notify stopping at its end."""
    manager = manager or service_manager()
    if manager.notify_socket is None:
        yield
        return
    _notify(manager.notify_socket, "READY=1")
    try:
        async with alongside(_feed(manager), name="watchdog"):
            yield
    finally:
        _notify(manager.notify_socket, "STOPPING=1")


async def _feed(manager: ServiceManager) -> None:
    assert manager.notify_socket is not None
    if manager.watchdog_s is None or manager.watchdog_pid not in (None, os.getpid()):
        return
    while True:
        _notify(manager.notify_socket, "WATCHDOG=1")
        await asyncio.sleep(manager.watchdog_s / _NOTIFICATIONS_PER_WATCHDOG)


def _notify(address: str, state: str) -> None:
    """Send a datagram; without a service manager that listens it is dropped."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, suppress(OSError):
        sock.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sock.sendall(state.encode())


class ExitCode(IntEnum):
    """Exit statuses with a meaning of their own; 64 to 78 are those of BSD `sysexits.h`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 69
    """Something that must be there is not: the broker, the manager, mosquitto."""
    NO_PERMISSION = 77
    """The broker refuses this user name, password or certificate."""
    CONFIG = 78
    """A setting, URL or file is wrong; trying again does not help."""
    CONFLICT = 80
    """A newer process has taken over this identity. systemd must not restart us: `RestartPreventExitStatus=80`."""
    INTERRUPTED = 128 + signal.SIGINT
    """Ctrl-C ended it: the status that a shell gives such a process."""


_WRONG_PATH = {
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.EEXIST, errno.ENOTDIR),
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
}
"""Errors that last until a person changes the path or its rights."""


def exit_code_of_disk(error: BaseException | None) -> ExitCode:
    """Return the exit code where a file cannot be used: a disk that is full, read-only or absent may recover."""
    is_wrong = isinstance(error, OSError) and error.errno in _WRONG_PATH
    return ExitCode.CONFIG if is_wrong else ExitCode.UNAVAILABLE
