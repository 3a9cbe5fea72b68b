"""FL servers as processes: started in a session of their own, found again by a new manager, supervised to their end.

A server does not end with its manager: its output goes to a file, its secret is in one, and the next manager finds it
by process id and key (`runtime.process_identity`). Signals are sent only to processes that this package launched.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

import psutil

from fedops_mqtt.runtime.process_identity import find_processes, is_process, process_key
from fedops_mqtt.runtime.processes import kill_group, kill_rest, read_tail, signal_name
from fedops_mqtt.runtime.remote_launch import END_MARK
from fedops_mqtt.runtime.settings import CONFIG_VARIABLE, ENV_PREFIX

logger = logging.getLogger(__name__)

ENDED_UNSEEN = "FL server ended while no manager was there"
"""How a server ended whose exit status nobody has read."""

POLL_S = 0.1
"""Between two checks of a process; one `waitpid` or one file in /proc each."""

_MANAGERS_OWN = frozenset({CONFIG_VARIABLE, f"{ENV_PREFIX}MANAGER_TOKEN", f"{ENV_PREFIX}DATABASE_URL"})
"""Kept from an FL server, which runs its user's code."""

_BROKER_VARIABLES = f"{ENV_PREFIX}BROKER"
"""Prefix of the variables with the broker's address and the credentials there."""


class Liveness(Enum):
    """Whether a server runs, according to the machine on which it was started."""

    ALIVE = "alive"
    ENDED = "ended"
    UNKNOWN = "unknown"
    """The machine does not answer: the server may be alive."""


class LaunchedServer(Protocol):
    """A server that was started, wherever: a process of this host, of another one, a Kubernetes Job."""

    log_path: Path

    @property
    def is_running(self) -> bool:
        """True until it is known that the server has ended."""
        ...

    async def wait(self) -> str:
        """Wait for its end, however long that takes; return how it ended."""
        ...

    async def check(self) -> Liveness:
        """Query whether it runs."""
        ...

    async def end(self, outcome: str | None, reason: str, *, grace_s: float) -> None:
        """Make it end, with the reason; it is killed where it has not ended after `grace_s`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOrder:
    """How to start one server. `environment` is complete and holds no secret: that is in a file."""

    run_id: str
    launch: int
    command: Sequence[str]
    cwd: Path
    environment: Mapping[str, str] = field(repr=False)
    log_path: Path


class ChildProcess(subprocess.Popen[bytes]):
    """A process that may outlive its manager."""

    def __del__(self) -> None:
        """Leave it running; Popen's own destructor warns of a child that does."""


class ServerProcess:
    """One server's process, of this manager or an earlier one."""

    def __init__(self, pid: int, key: str | None, log_path: Path, child: ChildProcess | None) -> None:
        self.pid = pid
        self.key = key
        self.log_path = log_path
        self._child = child
        self._status: int | None = None

    @property
    def is_running(self) -> bool:
        """True while the process runs; a zombie does not."""
        if self._child is not None:
            self._status = self._child.poll()
            return self._status is None
        return is_process(self.pid, self.key)

    @property
    def exit_reason(self) -> str:
        """How it ended, with the last lines of its log unless it ended well."""
        how = describe_exit(self._status)
        return how if self._status == 0 else with_log_tail(how, self.log_path)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and everything in its session's group; nothing when it has ended."""
        if self.is_running:
            kill_group(self.pid, number)

    def kill_rest(self) -> None:
        """Kill what an ended server left in its group (data loaders, for example)."""
        kill_rest(self.pid, self.key)

    @property
    def status(self) -> int | None:
        """The exit status, or minus a signal's number; None for a process of an earlier manager."""
        return self._status

    async def wait(self) -> str:
        """Wait for the process's end, however long that takes, kill the rest of its group; return how it ended."""
        while self.is_running:  # noqa: ASYNC110 - a process that is not our child sends no event
            await asyncio.sleep(POLL_S)
        self.kill_rest()
        return self.exit_reason

    async def check(self) -> Liveness:
        """Return whether the process runs."""
        return Liveness.ALIVE if self.is_running else Liveness.ENDED

    async def end(self, outcome: str | None, reason: str, *, grace_s: float) -> None:
        """Write the reason, then end the process; killed where it does not end within `grace_s`."""
        write_stop_reason(self.log_path, outcome, reason)
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            logger.warning("FL server did not end at SIGTERM, killing it", extra={"pid": self.pid, "grace_s": grace_s})
            self.signal(signal.SIGKILL)
            await self.wait()


def command_of(command: Sequence[str] | None, module: str | None) -> list[str]:
    """Return the arguments that start a task's program; a module runs with the manager's own Python."""
    return list(command) if command else [sys.executable, "-m", module or ""]


async def launch(order: LaunchOrder) -> ServerProcess:
    """Start a server. A manager that ends meanwhile leaves it running: the next one finds it by its environment.

    Raises:
        OSError: there is no such command or folder.
    """
    return await asyncio.to_thread(_launch, order)


def _launch(order: LaunchOrder) -> ServerProcess:
    order.log_path.parent.mkdir(parents=True, exist_ok=True)
    with order.log_path.open("ab") as log:
        child = ChildProcess(
            list(order.command),
            cwd=order.cwd,
            env=dict(order.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    facts = {"run_id": order.run_id, "launch": order.launch, "pid": child.pid, "log": str(order.log_path)}
    logger.info("launched an FL server", extra=facts)
    return ServerProcess(child.pid, process_key(child.pid), order.log_path, child)


def find(pid: int, key: str, log_path: Path) -> ServerProcess | None:
    """Return the process of an earlier manager's launch, if it still runs."""
    return ServerProcess(pid, key, log_path, None) if is_process(pid, key) else None


def search(run_id: str, launch_: int, log_path: Path) -> ServerProcess | None:
    """Find the process of a launch whose process id was not journaled, by its environment."""
    for process in find_processes({f"{ENV_PREFIX}RUN_ID": run_id, f"{ENV_PREFIX}LAUNCH": str(launch_)}):
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == process.pid:
                return ServerProcess(process.pid, process_key(process.pid), log_path, None)
    return None


def child_environment(
    inherited: Mapping[str, str],
    common: Mapping[str, object],
    own: Mapping[str, str],
    *,
    settings_file: Path | None = None,
) -> dict[str, str]:
    """Return a server's environment: the manager's, `common` settings by name, and the task's own variables.

    `python` on its PATH is the manager's own. The server does not get the manager's settings file; one that has a file
    of its own takes the broker's address and credentials from there, and gets none of the manager's.
    """
    # Unbuffered by default: the log of a server that was killed is complete and in order.
    environment = {"PYTHONUNBUFFERED": "1", **inherited}
    environment = {name: value for name, value in environment.items() if name not in _MANAGERS_OWN}
    bin_folder = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join((bin_folder, environment.get("PATH", os.defpath)))
    for name, value in common.items():
        if value is not None:
            environment[f"{ENV_PREFIX}{name.upper()}"] = str(value)
    if settings_file is not None:
        environment = {name: value for name, value in environment.items() if not name.startswith(_BROKER_VARIABLES)}
        environment[CONFIG_VARIABLE] = str(settings_file.resolve())
    environment.update(own)
    return environment


def with_log_tail(how: str, log_path: Path) -> str:
    """Return how a server ended with the last lines of its log, or that it has none."""
    lines = read_tail(log_path).splitlines()
    tail = "\n".join(line for line in lines if not line.startswith(END_MARK))
    return f"{how}; last lines of its log: {tail}" if tail else f"{how}; its log {log_path} is empty"


def write_stop_reason(log_path: Path, outcome: str | None, reason: str) -> None:
    """Write the run's outcome and the reason to the file that one launch's server reads at SIGTERM."""
    try:
        stop_reason_file(log_path).write_text(f"{outcome or 'replaced'}\n{reason}", encoding="utf-8", errors="replace")
    except OSError as error:
        facts = {"log": str(log_path), "problem": str(error)}
        logger.warning("cannot write why an FL server ends", extra=facts)


def stop_reason_file(log_path: Path) -> Path:
    """Return the file with the reason why one launch is ended; each launch has its own."""
    return log_path.with_suffix(".stop-reason")


def describe_exit(status: int | None) -> str:
    """Return how a process ended; None: its status is unknown."""
    if status is None:
        return "FL server process has ended"
    if status < 0:
        return f"FL server process was ended by {signal_name(-status)}"
    return f"FL server process exited with status {status}"
