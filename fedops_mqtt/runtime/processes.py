"""Processes and what they write: find and end what a training process left behind, and keep a bounded part of a stream.

Every training process carries a mark in its environment that its children inherit; only processes so marked are ended.
Of an untrusted stream, complete lines up to a length, its last lines, or a file of bounded size are kept.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedops_mqtt.runtime.files import mark_newest
from fedops_mqtt.runtime.process_identity import is_given_anew

MARK = "FEDOPS_MQTT_TRAINING"
"""Environment variable that carries the mark."""

_PROC = Path("/proc")
_MAX_ROUNDS = 20
"""A process may fork meanwhile; each round catches what was forked during the one before."""
_REAP_S = 5.0
"""A killed process is gone at once, except one that the kernel holds (a disk or a network folder that hangs)."""
_DRAIN_S = 1.0
"""After a command's end; what it wrote is in its pipes by then."""
_MAX_KEPT_BYTES = 64 * 1024


def kill_group(pgid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process group, if it is still there."""
    with suppress(ProcessLookupError, PermissionError):  # the latter on macOS, of a group of zombies
        os.killpg(pgid, number)


def kill_rest(pgid: int, key: str | None = None) -> None:
    """Kill what is left of the group of a process; `key` as `is_given_anew` has it."""
    if not is_given_anew(pgid, key):
        kill_group(pgid)


def signal_name(number: int) -> str:
    """Return the name of a signal; most of the real-time ones have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def kill_marked(mark: str) -> int:
    """Kill every process whose mark starts with `mark` and return how many there were; Linux only, else 0."""
    killed: set[int] = set()
    for _ in range(_MAX_ROUNDS):
        found = set(_marked(f"{MARK}={mark}".encode())) - killed
        if not found:
            break
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
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
        return False  # ended meanwhile, or another user's
    return any(variable.startswith(entry) for variable in environ.split(b"\0"))


async def kill_all(process: asyncio.subprocess.Process, mark: str) -> None:
    """Kill a process, its group and every process that carries its mark; returns when the process has ended."""
    if process.returncode is None:
        kill_group(process.pid)
    else:
        kill_rest(process.pid)
    # Before the wait: one that left the group may hold a pipe, and asyncio waits for pipes, too.
    await asyncio.to_thread(kill_marked, mark)
    await wait_killed(process)


async def terminate(process: asyncio.subprocess.Process, *, grace_s: float) -> None:
    """End a process that leads a group, and the group: SIGTERM, then SIGKILL to one that is left after the grace."""
    if process.returncode is None:
        kill_group(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await process.wait()
    if process.returncode is None:
        kill_group(process.pid)
    await wait_killed(process)


async def wait_killed(process: asyncio.subprocess.Process) -> None:
    """Wait for a process that was killed, and not without limit for its pipes.

    `Process.wait` of asyncio returns only when all pipes are closed, and a descendant in another session may hold them.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_REAP_S):
            await process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """How a command ended: its status, the beginning of its output, and the end of its errors."""

    status: int
    output: bytes
    errors: bytes


async def run_command(
    arguments: Sequence[str],
    *,
    timeout_s: float,
    environment: Mapping[str, str],
    given: bytes = b"",
) -> CommandResult:
    """Run a command in a session of its own, with `given` on its standard input; being cancelled kills its group.

    It has ended when its process has: descendants that hold its pipes are not waited for.

    Raises:
        OSError: it cannot be started.
        TimeoutError: it did not end within `timeout_s`; its group is killed.
    """
    pipe = asyncio.subprocess.PIPE
    transport, command = await asyncio.get_running_loop().subprocess_exec(
        _Command, *arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(environment), start_new_session=True
    )
    try:
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        stdin.write(given)
        stdin.close()
        async with asyncio.timeout(timeout_s):
            await command.has_exited.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await command.has_output.wait()
    finally:
        if not command.has_exited.is_set():
            kill_group(transport.get_pid())
            with suppress(TimeoutError):
                async with asyncio.timeout(_REAP_S):
                    await command.has_exited.wait()
        transport.close()
    status = transport.get_returncode()
    assert status is not None
    return CommandResult(status=status, output=bytes(command.kept[1]), errors=bytes(command.kept[2]))


class _Command(asyncio.SubprocessProtocol):
    """Keeps a bounded part of what a command writes: its output is from a machine that may be anybody's."""

    def __init__(self) -> None:
        self.has_exited = asyncio.Event()
        self.has_output = asyncio.Event()
        self.kept = {1: bytearray(), 2: bytearray()}
        self._open = {1, 2}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        kept = self.kept[fd]
        if fd == 1:
            kept += data[: _MAX_KEPT_BYTES - len(kept)]
        else:
            kept += data
            del kept[:-_MAX_KEPT_BYTES]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.has_output.set()

    def process_exited(self) -> None:
        self.has_exited.set()


logger = logging.getLogger(__name__)

OUTPUT_FOLDER = "trainings"
"""In the folder of an identity: what its trainings have printed, a file each."""
MAX_OUTPUT_BYTES = 8 * 1024 * 1024
"""Of one file; a full one is moved to `….log.1`, so the last 8 MiB at least are there."""
_MAX_LINE_BYTES = 64 * 1024
MAX_OUTPUTS = 10
"""Trainings whose output is kept."""


LOG_TAIL_LINES = 20
_MAX_TAIL_BYTES = 2000
"""Of a log in a reason; the file has the rest."""


class LineSplitter:
    """Turns chunks into lines; a line over `max_bytes` is dropped and counted, and does not disturb the next."""

    def __init__(self, max_bytes: int) -> None:
        self.num_dropped = 0
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._is_skipping = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that `chunk` completes, without their newline."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = self._take(end)
            if line is not None:
                yield line
        if self._is_skipping or len(self._rest) + len(rest) > self._max_bytes:
            self._is_skipping = True
            self._rest.clear()
        else:
            self._rest += rest

    def _take(self, end: bytes) -> bytes | None:
        is_too_long = self._is_skipping or len(self._rest) + len(end) > self._max_bytes
        line = bytes(self._rest) + end
        self._rest.clear()
        self._is_skipping = False
        self.num_dropped += is_too_long
        return None if is_too_long else line


class Tail:
    """Keeps the last lines of a stream, and of those the last `max_bytes`."""

    def __init__(self, *, max_lines: int, max_bytes: int) -> None:
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._kept = b""

    def feed(self, chunk: bytes) -> None:
        """Take in a chunk."""
        self._kept = (self._kept + chunk)[-self._max_bytes :]

    @property
    def text(self) -> str:
        """The last lines as text; bytes that are no UTF-8 are replaced, control characters are taken out."""
        lines = self._kept.decode(errors="replace").replace("\r", "\n").splitlines()
        kept = [line for line in lines if line.strip()][-self._max_lines :]
        return "\n".join("".join(char for char in line if char.isprintable() or char == "\t") for line in kept)


def read_tail(path: Path, *, max_lines: int = LOG_TAIL_LINES, max_bytes: int = _MAX_TAIL_BYTES) -> str:
    """Return the last lines of a log, of those the last `max_bytes`; empty when there are none."""
    tail = Tail(max_lines=max_lines, max_bytes=max_bytes)
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - max_bytes))
            tail.feed(log.read())
    except OSError:
        return ""
    return tail.text


class OutputFile:
    """The output of one training in a file of its own; the oldest trainings' files are deleted.

    A disk that is full, or a folder that cannot be written, costs the output and one warning, not the training.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / OUTPUT_FOLDER / f"{name}.log"
        self._has_failed = False
        self._began_ns = 0

    def begin(self) -> None:
        """Make room: the folder, and no more than `MAX_OUTPUTS` files with this one."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            for old in find_outputs(self.path.parent)[MAX_OUTPUTS - 1 :]:
                old.unlink()
                _before(old).unlink(missing_ok=True)
            self._touch()
        except OSError as error:
            self._fail(error)

    def _touch(self) -> None:
        self.path.touch(mode=0o600)
        mark_newest(self.path, self.path.parent.glob("*.log"))
        self._began_ns = self.path.stat().st_mtime_ns

    def write(self, chunk: bytes) -> None:
        """Append a chunk; a file that has become too large is rotated."""
        try:
            with self.path.open("ab") as file:
                file.write(chunk)
                is_full = file.tell() >= MAX_OUTPUT_BYTES
            if is_full:
                self.path.replace(_before(self.path))
            if is_full or time.time_ns() < self._began_ns:  # the clock was set back
                self._touch()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._has_failed:
            self._has_failed = True
            logger.warning("output of a training is not kept", extra={"path": str(self.path), "problem": str(error)})


def find_outputs(folder: Path) -> list[Path]:
    """Return the outputs of trainings in a folder, the newest first."""
    return sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)


def read_output(path: Path) -> Iterator[bytes]:
    """Yield a training's output line by line (of a line without end, parts), what was rotated before what is new."""
    for part in (_before(path), path):
        if part.exists():
            with part.open("rb") as file:
                while line := file.readline(_MAX_LINE_BYTES):
                    yield line


def _before(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")
