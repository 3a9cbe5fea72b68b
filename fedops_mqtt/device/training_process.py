"""One training process as the daemon sees it: spawned, listened to, stopped, and cleared away with all its children.

When `TrainingProcess.run` is over, however it ended, no process of that training is left.
"""

import asyncio
import hashlib
import logging
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self

from fedops_mqtt.core.client_state import PhaseReport
from fedops_mqtt.protocol import Outcome, ReasonCode
from fedops_mqtt.runtime.processes import (
    MARK,
    LineSplitter,
    OutputFile,
    Tail,
    kill_all,
    kill_marked,
    run_command,
    signal_name,
    terminate,
)
from fedops_mqtt.runtime.settings import environment_without_settings
from fedops_mqtt.training.pipe import (
    MAX_LINE_BYTES,
    EndedReport,
    Job,
    MetricsReport,
    Redirect,
    Stop,
    parse_report,
    to_line,
)

logger = logging.getLogger(__name__)

MODULE = "fedops_mqtt.training.process"

_CHUNK_BYTES = 64 * 1024
"""What a Linux pipe holds: one read empties it."""
_MAX_TAIL_BYTES = 3000
"""Of stderr in a reason; a status takes 4096 characters of reason."""
_DRAIN_S = 2.0
"""Once every marked process has ended the pipes close; a process that still holds one is not waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How a training process is run; `command` is for a Python of another place.

    `register` is the MODULE:ATTRIBUTE of what makes clients of registered models (`training.app_loading.MakeRegister`).
    """

    state_folder: Path
    stop_grace_s: float
    run_limit_s: float
    stderr_lines: int
    command: tuple[str, ...] = (sys.executable, "-m", MODULE)
    register: str | None = None


class SpawnedProcess:
    """A training process with its pipes, which waits for its job; one that no training takes is to be closed."""

    def __init__(self, options: TrainingOptions, live_task: int | None = None) -> None:
        self.options = options
        self.is_taken = False
        """A training has it: it is ended by that."""
        self.pipes: _Pipes
        self.mark = mark_of(options.state_folder) + uuid.uuid4().hex
        self.process: asyncio.subprocess.Process
        self._live_task = live_task
        self._closing = ExitStack()

    @property
    def is_alive(self) -> bool:
        """True until the process has ended."""
        return self.process.returncode is None

    async def begin(self, *arguments: str) -> None:
        """Start the process; with `--ready` it imports Flower before it has its job.

        Raises:
            OSError: it cannot be started.
        """
        try:
            pipes = self.pipes = _Pipes(self._closing)
            self.process = await asyncio.create_subprocess_exec(
                *self.options.command,
                "--lifeline",
                str(pipes.lifeline.fileno()),
                *(() if self.options.register is None else ("--register", self.options.register)),
                *arguments,
                stdin=pipes.commands_of_child,
                stdout=pipes.reports_of_child,
                stderr=pipes.stderr_of_child,
                pass_fds=(pipes.lifeline.fileno(), *(() if self._live_task is None else (self._live_task,))),
                start_new_session=True,
                env=training_environment(self.options.state_folder, self.mark),
            )
        except BaseException:
            self._closing.close()
            raise
        pipes.close_those_of_child()

    def hand_over(self, closing: ExitStack) -> None:
        """Let another stack close the pipes."""
        closing.push(self._closing.pop_all())

    async def close(self) -> None:
        """End the process, and what it left."""
        await kill_all(self.process, self.mark)
        self._closing.close()


class TrainingProcess:
    """One training process; call `run` once, the rest while it runs. `ready` is one that waits for its job."""

    def __init__(
        self,
        *,
        job: Job,
        options: TrainingOptions,
        on_report: Callable[[PhaseReport | MetricsReport], None],
        ready: SpawnedProcess | None = None,
    ) -> None:
        self._job = job
        self._options = options
        self._on_report = on_report
        self._ready = ready
        self._tail = Tail(max_lines=options.stderr_lines, max_bytes=_MAX_TAIL_BYTES)
        self._output = OutputFile(options.state_folder, f"{job.start.run_id}-{job.start.attempt}")
        self._commands: asyncio.WriteTransport | None = None
        self._ended: EndedReport | None = None
        self._stop_reason: str | None = None
        self._stop_code: ReasonCode | None = None
        self._has_reported = False
        self._is_over = asyncio.Event()
        """Set when the process reported its end, a stop is wanted, or the run limit has passed."""
        self.pid: int | None = None

    async def run(self) -> EndedReport:
        """Train to the end and return how it ended; being cancelled kills the process."""
        await asyncio.to_thread(self._output.begin)
        ended = await self._run()
        if self._ready is not None and ended.outcome is Outcome.FAILED and self._died_silently:
            self._ready = None
            logger.warning("the process that was kept ready died before it trained; another one is started")
            ended = await self._run()
        if ended.outcome is Outcome.FAILED:
            logger.error("training failed", extra={**self._facts, "reason": ended.reason})
        return ended

    @property
    def _died_silently(self) -> bool:
        """True when it reported nothing and was not ended from here."""
        return not self._has_reported and self._ended is None and not self._is_over.is_set()

    @property
    def _facts(self) -> dict[str, object]:
        start = self._job.start
        return {"run_id": start.run_id, "attempt": start.attempt, "output": str(self._output.path)}

    async def _run(self) -> EndedReport:
        with ExitStack() as closing:
            try:
                spawned = await self._take_process(closing)
            except OSError as error:
                return _failed(f"training process could not be started: {error}")
            self.pid = spawned.process.pid
            logger.info("a training process begins", extra={**self._facts, "pid": self.pid})
            try:
                return await self._attend(spawned)
            finally:
                await kill_all(spawned.process, spawned.mark)

    def redirect(self, server_ip: str, launch: int) -> None:
        """Send the process the address of its server; one that has not begun gets it with its job."""
        start = self._job.start.model_copy(update={"server_ip": server_ip, "launch": launch})
        self._job = self._job.model_copy(update={"start": start})
        self._send(Redirect(server_ip=server_ip, launch=launch))

    def stop(self, reason: str, code: ReasonCode | None = None) -> None:
        """End the process: SIGTERM now, SIGKILL after the grace; `run` returns once it has ended."""
        if self._stop_reason is None:
            self._stop_reason, self._stop_code = reason, code
            self._send(Stop(reason=reason, reason_code=code))
            self._is_over.set()

    def end(self, ended: EndedReport) -> None:
        """End the process with a result that was reported elsewhere."""
        self._ended = self._ended or ended
        self.stop(ended.reason or "ended by the client's program")

    def _send(self, command: Job | Redirect | Stop) -> None:
        if self._commands is not None and not self._commands.is_closing():
            self._commands.write(to_line(command))

    async def _take_process(self, closing: ExitStack) -> SpawnedProcess:
        spawned = self._ready
        if spawned is None:
            spawned = SpawnedProcess(self._options, self._job.live_task)
            await spawned.begin()
        spawned.hand_over(closing)
        return spawned

    async def _attend(self, spawned: SpawnedProcess) -> EndedReport:
        process = spawned.process
        async with _Streams(spawned.pipes) as streams, asyncio.TaskGroup() as group:
            self._commands = streams.commands
            self._send(self._job)
            readers = [
                group.create_task(self._read_reports(streams.reports), name="training-reports"),
                group.create_task(self._read_stderr(streams.stderr), name="training-stderr"),
            ]
            is_late = await self._see_out(process, group)
            await kill_all(process, spawned.mark)
            await asyncio.wait(readers, timeout=_DRAIN_S)
            for reader in readers:
                reader.cancel()
        return self._conclude(process.returncode, is_late=is_late)

    async def _see_out(self, process: asyncio.subprocess.Process, group: asyncio.TaskGroup) -> bool:
        """Wait until the process has ended, terminate it where it does not; return whether it ran over its limit."""
        grace_s = self._options.stop_grace_s
        exited = group.create_task(process.wait(), name="training-exit")
        over = group.create_task(self._is_over.wait(), name="training-over")
        await asyncio.wait({exited, over}, timeout=self._options.run_limit_s, return_when=asyncio.FIRST_COMPLETED)
        is_late = not exited.done() and not over.done()
        over.cancel()
        if is_late:
            self._is_over.set()
        if self._ended is not None and self._stop_reason is None:
            await asyncio.wait({exited}, timeout=grace_s)
        if not exited.done():
            await terminate(process, grace_s=grace_s)
        await exited
        return is_late

    async def _read_reports(self, stream: asyncio.StreamReader) -> None:
        splitter = LineSplitter(MAX_LINE_BYTES)
        while chunk := await stream.read(_CHUNK_BYTES):
            for line in splitter.feed(chunk):
                self._take_line(line)
        if splitter.num_dropped:
            logger.warning("reports of a training process were too long", extra={"dropped": splitter.num_dropped})

    def _take_line(self, line: bytes) -> None:
        try:
            report = parse_report(line)
        except ValueError:
            logger.warning("a report of a training process is invalid", extra={"size_bytes": len(line)})
            return
        self._has_reported = True
        if isinstance(report, EndedReport):
            self._ended = self._ended or report
            self._is_over.set()
        else:
            self._on_report(report)

    async def _read_stderr(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(_CHUNK_BYTES):
            self._tail.feed(chunk)
            await asyncio.to_thread(self._output.write, chunk)

    def _conclude(self, returncode: int | None, *, is_late: bool) -> EndedReport:
        if self._ended is not None:
            return self._ended
        if self._stop_reason is not None:
            return EndedReport(outcome=Outcome.STOPPED, reason=self._stop_reason, reason_code=self._stop_code)
        if is_late:
            return _failed(f"run limit of {self._options.run_limit_s:g} s passed")
        return _failed(f"{exit_reason(returncode)}\n{self._tail.text}".rstrip())


def mark_of(state_folder: Path) -> str:
    """Return how the marks of all trainings of an identity begin; its folder is what makes it one."""
    return hashlib.blake2b(os.fsencode(state_folder.resolve()), digest_size=8).hexdigest() + "-"


def exit_reason(returncode: int | None) -> str:
    """Return, for people, how a process ended that was not stopped."""
    if returncode is None:
        return "training process did not end"
    if returncode >= 0:
        return f"training process ended without a result, exit code {returncode}"
    name = signal_name(-returncode)
    return f"training process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _failed(reason: str) -> EndedReport:
    return EndedReport(outcome=Outcome.FAILED, reason=reason)


def training_environment(state_folder: Path, mark: str) -> dict[str, str]:
    """Return the child's environment: ours without our own settings, some of which are secrets."""
    return environment_without_settings() | {
        MARK: mark,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(state_folder / "flwr"),
        "PYTHONUNBUFFERED": "1",
    }


class _Pipes:
    """Both ends of the four pipes to a training process; the caller's stack closes what is still open."""

    def __init__(self, closing: ExitStack) -> None:
        self.commands_of_child, self.commands = _pipe(closing)
        self.reports, self.reports_of_child = _pipe(closing)
        self.stderr, self.stderr_of_child = _pipe(closing)
        self.lifeline, self._lifeline_of_daemon = _pipe(closing)
        """Nothing is ever written to it: the child is killed by the kernel when this process lets go of its end."""

    def close_those_of_child(self) -> None:
        """Let go of what only the child is to hold, or its death would not be the end of a stream."""
        for end in (self.commands_of_child, self.reports_of_child, self.stderr_of_child, self.lifeline):
            end.close()


def _pipe(closing: ExitStack) -> tuple[FileIO, FileIO]:
    read, write = os.pipe()
    return closing.enter_context(FileIO(read, "rb")), closing.enter_context(FileIO(write, "wb"))


class _Streams:
    """Our ends in the event loop, for as long as the block lasts."""

    def __init__(self, pipes: _Pipes) -> None:
        self._pipes = pipes
        self._transports: list[asyncio.ReadTransport | asyncio.WriteTransport] = []
        self.commands: asyncio.WriteTransport
        self.reports: asyncio.StreamReader
        self.stderr: asyncio.StreamReader

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.commands, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, self._pipes.commands)
        self._transports.append(self.commands)
        self.reports = await self._read(self._pipes.reports)
        self.stderr = await self._read(self._pipes.stderr)
        return self

    async def _read(self, end: FileIO) -> asyncio.StreamReader:
        stream = asyncio.StreamReader(limit=_CHUNK_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), end
        )
        self._transports.append(transport)
        return stream

    async def __aexit__(self, *_: object) -> None:
        if not self.commands.is_closing():
            self.commands.abort()
        for transport in self._transports:
            transport.close()


CHECK_MODULE = "fedops_mqtt.training.app_check"
TIMEOUT_S = 120.0
"""torch takes half a minute on a small device; an app that takes longer is left to its training."""
_MAX_ANSWER = 2000


async def check_app(app: str, import_paths: Sequence[str], *, state_folder: Path) -> str | None:
    """Return what is wrong with an app (`MODULE:ATTRIBUTE`); None when nothing is, or that cannot be found out."""
    command = (sys.executable, "-m", CHECK_MODULE, app, *import_paths)
    mark = mark_of(state_folder) + f"check-{uuid.uuid4().hex}"
    try:
        done = await run_command(command, timeout_s=TIMEOUT_S, environment=training_environment(state_folder, mark))
    except TimeoutError:
        return None
    except OSError as error:  # too many processes, or too little memory, just now
        logger.warning("the app cannot be checked before it trains", extra={"app": app, "why": str(error)})
        return None
    finally:
        await asyncio.to_thread(kill_marked, mark)
    if not done.status:
        return None
    problem = done.errors.decode(errors="replace").strip()[-_MAX_ANSWER:]
    return problem or f"cannot load app {app!r}: importing it ended its process with status {done.status}"
