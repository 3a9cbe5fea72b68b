"""FL servers as processes: started in a session of their own, found again by a new manager, watched to their end.

A server is no child that dies with the manager: its output goes to a file, its secret lies in one, and a manager that
was killed finds it by process id and start time. Only a process that this package launched is ever signalled.
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

from fedops_mqtt.runtime.processes import read_tail
from fedops_mqtt.runtime.settings import CONFIG_VARIABLE, ENV_PREFIX

logger = logging.getLogger(__name__)

POLL_S = 0.1
"""How often processes are looked at; one `waitpid` or one file in /proc each."""

_START_TIME_SLACK_S = 0.05
"""psutil reckons a start time from boot time and clock ticks of 10 ms."""


_MANAGERS_OWN = frozenset({CONFIG_VARIABLE, f"{ENV_PREFIX}MANAGER_TOKEN", f"{ENV_PREFIX}DATABASE_URL"})
"""What an FL server, which runs its user's code, is not told."""

_BROKER_VARIABLES = f"{ENV_PREFIX}BROKER"
"""With this begins every variable that says where the broker is and who we are to it."""


class Liveness(Enum):
    """Whether a server lives, as the machine says that it was started on."""

    ALIVE = "alive"
    ENDED = "ended"
    UNKNOWN = "unknown"
    """The machine cannot be asked: the server may be alive."""


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
        """Ask whether it lives."""
        ...

    async def end(self, outcome: str | None, reason: str, *, grace_s: float) -> None:
        """Have it ended and say why; killed where it has not ended after `grace_s`."""
        ...

    def let_go(self) -> None:
        """Leave it to itself: the manager ends, the server goes on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOrder:
    """How to start one server. `environment` is whole; it holds no secret, `secret_file` does."""

    run_id: str
    launch: int
    command: Sequence[str]
    cwd: Path
    environment: Mapping[str, str] = field(repr=False)
    log_path: Path


class ServerProcess:
    """One server's process, ours or an earlier manager's."""

    def __init__(self, pid: int, started_at: float, log_path: Path, child: "subprocess.Popen[bytes] | None") -> None:
        self.pid = pid
        self.started_at = started_at
        self.log_path = log_path
        self._child = child
        self._status: int | None = None

    @property
    def is_running(self) -> bool:
        """True while the process is there and is no zombie."""
        if self._child is not None:
            self._status = self._child.poll()
            return self._status is None
        return _is_process(self.pid, self.started_at)

    @property
    def exit_reason(self) -> str:
        """How it ended, with the last lines of its log unless it ended well."""
        if self._status == 0:
            return describe_exit(0)
        tail = read_tail(self.log_path)
        how = describe_exit(self._status)
        return f"{how}; last words: {tail}" if tail else f"{how}; its log {self.log_path} is empty"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and everything in its session's group; nothing when it is gone."""
        if not self.is_running:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def sweep(self) -> None:
        """Kill what an ended server left behind in its group (loaders of data, say)."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def status(self) -> int | None:
        """The exit status, or minus a signal's number; None for a process of an earlier manager."""
        return self._status

    async def wait(self) -> str:
        """Wait for the process's end and clear away what it left; return how it ended."""
        return await wait_exit(self)

    async def check(self) -> Liveness:
        """Look at the process."""
        return Liveness.ALIVE if self.is_running else Liveness.ENDED

    async def end(self, outcome: str | None, reason: str, *, grace_s: float) -> None:
        """Write down why it ends, then end it."""
        write_stop_reason(self.log_path, outcome, reason)
        await end(self, grace_s=grace_s)

    def let_go(self) -> None:
        """Leave the process to itself: the manager ends, the server goes on."""
        if self._child is not None and self._child.returncode is None:
            self._child.returncode = 0  # or Popen's destructor warns of a child that is still running


def command_of(command: Sequence[str] | None, module: str | None) -> list[str]:
    """Return the arguments that start a task's program; a module runs with the manager's own Python."""
    return list(command) if command else [sys.executable, "-m", module or ""]


async def launch(order: LaunchOrder) -> ServerProcess:
    """Start a server.

    Raises:
        OSError: there is no such command or folder.
    """
    return await asyncio.to_thread(_launch, order)


def _launch(order: LaunchOrder) -> ServerProcess:
    order.log_path.parent.mkdir(parents=True, exist_ok=True)
    with order.log_path.open("ab") as log:
        child = subprocess.Popen(
            list(order.command),
            cwd=order.cwd,
            env=dict(order.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started_at = start_time(child.pid)
    facts = {"run_id": order.run_id, "launch": order.launch, "pid": child.pid, "log": str(order.log_path)}
    logger.info("launched an FL server", extra=facts)
    return ServerProcess(child.pid, started_at, order.log_path, child)


def find(pid: int, started_at: float, log_path: Path) -> ServerProcess | None:
    """Return the process of an earlier manager's launch, if it still runs."""
    return ServerProcess(pid, started_at, log_path, None) if _is_process(pid, started_at) else None


def search(run_id: str, launch_: int, log_path: Path) -> ServerProcess | None:
    """Look for a launch whose process id was never written down, by what its environment says."""
    wanted = {f"{ENV_PREFIX}RUN_ID": run_id, f"{ENV_PREFIX}LAUNCH": str(launch_)}
    for process in psutil.process_iter():
        try:
            is_leader = os.getsid(process.pid) == process.pid
            if is_leader and wanted.items() <= process.environ().items():
                return ServerProcess(process.pid, process.create_time(), log_path, None)
        except (psutil.Error, OSError):
            continue
    return None


async def wait_exit(process: ServerProcess) -> str:
    """Wait for a process's end, however long that takes, clear away what it left; return how it ended."""
    while process.is_running:  # noqa: ASYNC110 - nobody tells us of a process that is not our child
        await asyncio.sleep(POLL_S)
    process.sweep()
    return process.exit_reason


async def end(process: ServerProcess, *, grace_s: float) -> None:
    """Ask a server to end, and kill it when it does not within `grace_s`."""
    process.signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(grace_s):
            await wait_exit(process)
    except TimeoutError:
        logger.warning("FL server did not end when asked, killing it", extra={"pid": process.pid, "grace_s": grace_s})
        process.signal(signal.SIGKILL)
        await wait_exit(process)


def write_secret(path: Path, secret: bytes) -> None:
    """Write a run's secret where only this user reads it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(secret.hex())


def child_environment(
    inherited: Mapping[str, str],
    said: Mapping[str, object],
    own: Mapping[str, str],
    *,
    settings_file: Path | None = None,
) -> dict[str, str]:
    """Return a server's environment: what the manager has, what it says (by setting name), what the task adds.

    `python` on its PATH is the manager's own. The manager's settings file is not the server's; a server that has one
    takes how to reach the broker from there, and gets no credentials of the manager's.
    """
    # Unbuffered, unless somebody sets it empty: what a server printed before it was killed is in its log, in order.
    environment = {"PYTHONUNBUFFERED": "1", **inherited}
    environment = {name: value for name, value in environment.items() if name not in _MANAGERS_OWN}
    bin_folder = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join((bin_folder, environment.get("PATH", os.defpath)))
    for name, value in said.items():
        if value is not None:
            environment[f"{ENV_PREFIX}{name.upper()}"] = str(value)
    if settings_file is not None:
        environment = {name: value for name, value in environment.items() if not name.startswith(_BROKER_VARIABLES)}
        environment[CONFIG_VARIABLE] = str(settings_file.resolve())
    environment.update(own)
    return environment


def write_stop_reason(log_path: Path, outcome: str | None, reason: str) -> None:
    """Write what became of the run, and why, where one launch's server looks for it at SIGTERM."""
    try:
        stop_reason_file(log_path).write_text(f"{outcome or 'replaced'}\n{reason}", encoding="utf-8", errors="replace")
    except OSError as error:
        facts = {"log": str(log_path), "problem": str(error)}
        logger.warning("cannot write why an FL server ends", extra=facts)


def stop_reason_file(log_path: Path) -> Path:
    """Where one launch finds why it is ended; the next one has its own."""
    return log_path.with_suffix(".stop-reason")


def describe_exit(status: int | None) -> str:
    """Return how a process ended; None: nobody saw its status."""
    if status is None:
        return "FL server process is gone"
    if status < 0:
        return f"FL server process was ended by {signal.Signals(-status).name}"
    return f"FL server process exited with status {status}"


def start_time(pid: int) -> float:
    """Return when a process began, s since 1970; 0 for one that is gone."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def _is_process(pid: int, started_at: float) -> bool:
    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - started_at) <= _START_TIME_SLACK_S
        return is_same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
