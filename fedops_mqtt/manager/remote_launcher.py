"""FL servers on other machines, started by a task's command template: ssh, Slurm, Docker, or any wrapper.

The launch command copies the server's log; its end is not the server's. A server has ended when the command's last
line, or an answer of `launch_alive`, reports that: a host that does not answer may still run it, and no other launch
is started.
"""

import asyncio
import json
import logging
import shlex
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedops_mqtt.manager import launcher
from fedops_mqtt.manager.launcher import ChildProcess, Liveness, ServerProcess
from fedops_mqtt.manager.remote_order import verb
from fedops_mqtt.manager.tasks import COMMAND, TaskConfig
from fedops_mqtt.protocol import clip
from fedops_mqtt.runtime.files import delete_file, write_private
from fedops_mqtt.runtime.process_identity import process_key
from fedops_mqtt.runtime.processes import read_tail, run_command
from fedops_mqtt.runtime.remote_launch import END_MARK, START_MARK

logger = logging.getLogger(__name__)

ASK_TIMEOUT_S = 20.0
"""`launch_stop` and `launch_alive` answer within this."""
ASK_EVERY_S = 3.0
"""Between two requests to a host that did not answer, or that does not report by itself."""
DRAIN_S = 2.0
"""A launch command whose server has ended is given this long to copy the last lines."""
START_SHARE = 0.8
"""Of `server_start_s`: a launch that has not begun by then is given up, with its reason, before the run fails."""
_MAX_PROBLEM = 400
_END_BYTES = 64 * 1024
"""Of a log's end: the last line holds the server's final status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteLaunch:
    """One launch on another machine, as a later manager can build it again."""

    run_id: str
    launch: int
    task_id: str
    task: TaskConfig
    log_path: Path
    final_status_file: Path
    order_file: Path
    nonce: str = field(repr=False)
    """In the order: the last line of the log carries it, or it is not the launch's end."""
    start_limit_s: float
    """A launch without any sign of a start is given up after this."""
    environment: Mapping[str, str] = field(repr=False)
    """Of the launch command; the server's own is in the order."""

    def arguments(self, template: Sequence[str], *verb_arguments: str, signal: str = "") -> list[str]:
        """Return a template's arguments with its placeholders filled in."""
        command = verb(self.task, *verb_arguments)
        values = {
            "name": f"fedops-mqtt-{self.run_id}-{self.launch}",
            "run_id": self.run_id,
            "launch": str(self.launch),
            "task_id": self.task_id,
            "order_file": str(self.order_file),
            "shell_command": shlex.join(command),
            "signal": signal,
        }
        parts = (command if part == COMMAND else [part.format_map(values)] for part in template)
        return [argument for part in parts for argument in part]


class RemoteServer:
    """A server on another machine.

    Args:
        launch: what and where.
        report: called with the problem when its host does not answer, and with None when it answers again.
        note: journals the process that copies the server's log.
        command: that process, of an earlier manager, if it still runs.
        is_resumed: an earlier manager launched it, so it may run although this one has no sign of it.
    """

    def __init__(
        self,
        launch: RemoteLaunch,
        report: Callable[[str | None], None],
        note: Callable[[ServerProcess], Awaitable[None]],
        command: ServerProcess | None = None,
        *,
        is_resumed: bool = False,
    ) -> None:
        self.log_path = launch.log_path
        self._launch = launch
        self._report = report
        self._note = note
        self._command = command
        self._is_resumed = is_resumed
        self._began = time.monotonic()
        self._problem: str | None = None
        self._has_ended = False

    @property
    def is_running(self) -> bool:
        """True until it is known that the server has ended."""
        return not self._has_ended

    async def start(self, order: bytes) -> None:
        """Run the launch command with the order on its standard input.

        Raises:
            OSError: the program is not there, or the order cannot be written.
        """
        await self._note(await asyncio.to_thread(self._start, order))

    async def wait(self) -> str:
        """Wait for the server's end, however long that takes; return how it ended."""
        try:
            reason = await self._wait()
        finally:
            delete_file(self._launch.order_file)
        self._has_ended = True
        return reason

    async def check(self) -> Liveness:
        """Query whether the server runs, and report a host that does not answer."""
        launch = self._launch
        template = launch.task.launch_alive or launch.task.launch or ()
        printed, problem = await self._run(template, "alive", launch.run_id, str(launch.launch))
        self.note_problem(problem, "the FL server's host does not answer: ")
        if problem is not None:
            return Liveness.UNKNOWN
        return Liveness.ALIVE if printed.strip() else Liveness.ENDED

    async def end(self, outcome: str | None, reason: str, *, grace_s: float) -> None:
        """Signal the server, with SIGKILL after `grace_s`, until its host has confirmed the end."""
        signalled_at: float | None = None
        while self.is_running:
            is_overdue = signalled_at is not None and time.monotonic() - signalled_at > grace_s
            is_signalled = await self._signal("KILL" if is_overdue else "TERM", f"{outcome or 'replaced'}\n{reason}")
            if is_signalled and signalled_at is None:
                signalled_at = time.monotonic()
            await self._await_end(min(ASK_EVERY_S, grace_s))
            if self.is_running and is_signalled and await self.check() is Liveness.ENDED and self._command is not None:
                await self._await_end(DRAIN_S)
                self._drop_command()

    def _start(self, order: bytes) -> ServerProcess:
        launch = self._launch
        write_private(launch.order_file, order)
        template = launch.task.launch or ()
        try:
            return self._spawn(launch.arguments(template, "start"), launch.order_file)
        finally:
            if "{order_file" not in "".join(template):  # with a format or without
                delete_file(launch.order_file)

    async def _attach(self) -> None:
        """Copy the server's log from the first byte that is missing here."""
        launch = self._launch
        try:
            offset = launch.log_path.stat().st_size
        except FileNotFoundError:
            offset = 0
        arguments = launch.arguments(launch.task.launch or (), "attach", launch.run_id, str(launch.launch), str(offset))
        with suppress(OSError):  # tried again soon
            await self._note(await asyncio.to_thread(self._spawn, arguments, None))

    def _spawn(self, arguments: Sequence[str], order_file: Path | None) -> ServerProcess:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log, self._messages.open("ab") as messages:
            order = order_file.open("rb") if order_file else None
            try:
                child = ChildProcess(
                    arguments,
                    env=dict(self._launch.environment),
                    stdin=order or subprocess.DEVNULL,
                    stdout=log,
                    stderr=messages,
                    start_new_session=True,
                )
            finally:
                if order is not None:
                    order.close()
        self._command = process = ServerProcess(child.pid, process_key(child.pid), self.log_path, child)
        facts = {"run_id": self._launch.run_id, "launch": self._launch.launch, "pid": child.pid}
        logger.info("runs a launch command", extra={**facts, "program": arguments[0]})
        return process

    async def _wait(self) -> str:
        is_collected = False
        while True:
            how = await self._command_ended()
            if (reason := read_end(self._launch)) is not None:
                return reason
            answer = await self.check()
            if answer is Liveness.ENDED and self._may_attach and not is_collected:
                is_collected = True  # for the last lines, and how it ended
                await self._attach()
            elif answer is Liveness.ENDED:
                return self._describe(how)
            elif answer is Liveness.ALIVE and self._may_attach:
                await self._attach()
                await asyncio.sleep(ASK_EVERY_S / 10)
            elif not self._has_started() and time.monotonic() - self._began > self._launch.start_limit_s * START_SHARE:
                return f"FL server cannot be started: {self._problem or self._describe(how)}"
            else:
                await asyncio.sleep(ASK_EVERY_S)

    async def _command_ended(self) -> str:
        """Wait for the end of the launch command, and query its host while that does not answer."""
        asked_at = time.monotonic()
        while self._command is not None and self._command.is_running:
            await asyncio.sleep(launcher.POLL_S)
            if self._problem is not None and time.monotonic() - asked_at > ASK_EVERY_S:
                is_ended = await self.check() is Liveness.ENDED
                asked_at = time.monotonic()
                if is_ended:
                    await asyncio.sleep(DRAIN_S)
                    self._drop_command()
        ended, self._command = self._command, None
        return launcher.describe_exit(ended.status).replace("process", "launch command", 1) if ended else ""

    async def _await_end(self, within_s: float) -> None:
        until = time.monotonic() + within_s
        while self.is_running and time.monotonic() < until:  # noqa: ASYNC110 - `wait` finds out
            await asyncio.sleep(launcher.POLL_S)

    async def _signal(self, name: str, stop_reason: str) -> bool:
        launch = self._launch
        template = launch.task.launch_stop or launch.task.launch or ()
        what = ("stop", launch.run_id, str(launch.launch), name)
        _, problem = await self._run(template, *what, signal=name, given=stop_reason.encode(errors="replace"))
        if problem is not None:
            facts = {"run_id": launch.run_id, "launch": launch.launch, "problem": problem}
            logger.warning("could not send a signal to an FL server on another machine", extra=facts)
            await self.check()
        return problem is None

    async def _run(
        self, template: Sequence[str], *verb_arguments: str, signal: str = "", given: bytes = b""
    ) -> tuple[str, str | None]:
        try:
            arguments = self._launch.arguments(template, *verb_arguments, signal=signal)
        except (LookupError, ValueError, TypeError, AttributeError) as error:  # of a journal, or a version before
            return "", f"its command cannot be made of {' '.join(template)!r}: {type(error).__name__}: {error}"
        return await _run(arguments, self._launch.environment, given)

    def _drop_command(self) -> None:
        if self._command is not None:
            self._command.kill_rest()

    def note_problem(self, problem: str | None, what: str = "") -> None:
        """Report why it is not known whether the server runs, once; None, or the next answer of its host: it is known.

        `what` stands before the problem where it is reported.
        """
        if problem != self._problem:
            self._problem = problem
            self._report(problem and what + problem)

    @property
    def _may_attach(self) -> bool:
        """True where the launch command reaches the same machine each time."""
        return self._launch.task.launch_alive is None

    @property
    def _messages(self) -> Path:
        """The launch command's own output, beside the server's log."""
        return self.log_path.with_suffix(".launch.log")

    def _has_started(self) -> bool:
        has_output = self.log_path.exists() and self.log_path.stat().st_size > 0
        return self._is_resumed or has_output or START_MARK in read_tail(self._messages)

    def _describe(self, how: str) -> str:
        if not self._has_started() or (self._is_resumed and not self.log_path.exists()):
            problem = read_tail(self._messages)
            how = how or "its launch command has ended"
            return f"FL server cannot be started: {how}; last lines of its output: {problem}"
        return launcher.with_log_tail(how or launcher.ENDED_UNSEEN, self.log_path)


def read_end(launch: RemoteLaunch) -> str | None:
    """Return how a server ended, from its log's last line; None where there is no such line (yet).

    Text of clients reaches that log: only a whole line with the launch's nonce is its end. The final status in it is
    written where a server of this host writes it.
    """
    try:
        with launch.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _END_BYTES))
            line = log.read().removesuffix(b"\n").rpartition(b"\n")[2]
        ended = json.loads(line.removeprefix(END_MARK.encode())) if line.startswith(END_MARK.encode()) else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(ended, dict) or ended.get("nonce") != launch.nonce:
        return None
    if isinstance(final := ended.get("final_status"), str):
        try:
            write_private(launch.final_status_file, final.encode())
        except (OSError, ValueError) as error:  # a full disk; a surrogate. The bus and the store have it, too
            facts = {"run_id": launch.run_id, "launch": launch.launch, "problem": str(error)}
            logger.warning("could not keep the final status of an FL server", extra=facts)
    status = ended.get("status")
    how = launcher.describe_exit(status if isinstance(status, int) else None)
    return how if status == 0 else launcher.with_log_tail(how, launch.log_path)


async def _run(arguments: Sequence[str], environment: Mapping[str, str], given: bytes) -> tuple[str, str | None]:
    """Run a command to its end; return its output, and the problem (None: it exited with status 0)."""
    try:
        done = await run_command(arguments, timeout_s=ASK_TIMEOUT_S, environment=environment, given=given)
    except TimeoutError:  # before OSError, of which it is one
        return "", f"{arguments[0]} did not answer within {ASK_TIMEOUT_S:g} s"
    except OSError as error:
        return "", f"{arguments[0]}: {error.strerror}"
    if done.status == 0:
        return done.output.decode(errors="replace"), None
    reason = (done.errors.decode(errors="replace").strip().splitlines() or [""])[-1]  # ssh warns first
    return "", clip(f"{arguments[0]} exited with status {done.status}: {reason}", _MAX_PROBLEM)
