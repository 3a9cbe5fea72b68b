"""mosquitto as a managed process: on a free port, ready when it answers a CONNECT, ended with its parent.

It runs the shipped configuration itself, with the port and the folder replaced; as root it stays root, because a
process that changes its user is no longer ended with its parent, and could not read its owner's files.
"""

import asyncio
import os
import random
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from fedops_mqtt.bus.errors import MosquittoError
from fedops_mqtt.runtime.files import why_unreadable
from fedops_mqtt.runtime.machine import accepts_connections
from fedops_mqtt.runtime.processes import read_tail

_SEARCHED_TOO = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
"""Where packages put mosquitto and a person's PATH does not look."""

_CONNECT_311 = bytes.fromhex("100c00044d5154540402000a0000")
"""An MQTT 3.1.1 CONNECT without client id, keep alive 10 s; any CONNACK to it means that the broker is up."""

_CONNACK = 0x20
_RETRY_S = 0.02
_ANSWER_TIMEOUT_S = 1.0
_PORT_TRIES = 5
_PORTS = range(16384, 32768)
"""Below those of outgoing connections: Linux gives them ports from 32768 on, macOS from 49152 on."""
_PORTS_TRIED = 1000
_LOG_TAIL_LINES = 10


def find_config(name: str = "mosquitto.dev.conf") -> Path:
    """Return a shipped broker configuration, from an installed wheel or a checkout.

    Raises:
        MosquittoError: there is no such file.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "broker-config", package.parent / "broker-config"):
        if (folder / name).is_file():
            return folder / name
    raise MosquittoError(f"no {name} in broker-config beside the package {package}")


def find_mosquitto() -> str:
    """Return the path of the mosquitto executable.

    Raises:
        MosquittoError: it is not installed.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SEARCHED_TOO])
    found = shutil.which("mosquitto", path=path)
    if found is None:
        raise MosquittoError("not found; install it (Debian: apt-get install mosquitto, macOS: brew install mosquitto)")
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that is free at this moment.

    It is none of those that systems give to outgoing connections, so that no connection has it when the broker is
    started again.
    """
    for port in random.sample(_PORTS, _PORTS_TRIED):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    raise MosquittoError(f"none of {_PORTS_TRIED} ports of {host} is free")


def _check_port(host: str, port: int) -> None:
    """A broker that has the port already would answer for ours.

    Raises:
        MosquittoError: a process listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise MosquittoError(f"cannot listen on {host}:{port}: {error.strerror}", str(error)) from error


def render_config(text: str, *, port: int, data_dir: Path, changes: Mapping[str, str]) -> str:
    """Return a configuration with port, data folder and `changes` (directive to value) put in.

    A directive that stands in the text is replaced where it stands; one that does not is added at the end. The ports
    and the folder of a configuration with several listeners stay as they are: it was made for its place.
    """
    is_own = len(listener_ports(text)) > 1
    wanted = dict(changes) if is_own else {"persistence_location": f"{data_dir}/", **changes}
    lines = []
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "listener" and not is_own:
            host = value.partition(" ")[2]
            lines.append(f"listener {port} {host}".rstrip())
        elif name in wanted:
            lines.append(f"{name} {wanted.pop(name)}")
        else:
            lines.append(line)
    return "\n".join([*lines, *(f"{name} {value}" for name, value in wanted.items())]) + "\n"


def listener_ports(text: str) -> list[int]:
    """Return the ports that a configuration listens on, in its order."""
    listeners = [line.split() for line in text.splitlines() if line.startswith("listener ")]
    return [int(each[1]) for each in listeners]


class Mosquitto:
    """A broker of one's own, as an async context manager.

    Args:
        config: configuration to run; default: the shipped one for development.
        port: TCP port; default: a free one. Ports of a configuration with several listeners stay as they are.
        changes: directives to replace or add.
        data_dir: where retained messages are kept; default: a temporary folder that goes with the broker.
        is_log_shown: mosquitto's log goes to our stderr instead of into the error of a failed start.
        start_timeout_s: how long it may take to answer a CONNECT.

    Raises (on entering):
        MosquittoError: it is not installed or did not start; its own last lines are in the message.
    """

    def __init__(
        self,
        *,
        config: Path | None = None,
        port: int | None = None,
        changes: Mapping[str, str] | None = None,
        data_dir: Path | None = None,
        is_log_shown: bool = False,
        start_timeout_s: float = 10.0,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = port or 0
        self._config = config
        self._changes = dict(changes or {})
        self._data_dir = data_dir
        self._is_log_shown = is_log_shown
        self._start_timeout_s = start_timeout_s
        self._is_tls = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"{'mqtts' if self._is_tls else 'mqtt'}://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id; 0 while it does not run."""
        return self._process.pid if self._process else 0

    async def __aenter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="fedops-mosquitto-")
        try:
            await self._start_on_some_port()
        except BaseException:
            await self._clean_up()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._clean_up()

    async def start(self) -> None:
        """Start it (again) on its port with what it had saved.

        Raises:
            MosquittoError: it did not come up.
        """
        config = self._write_config()
        _check_port(self.host, self.port)
        command = [*_end_with_parent(), find_mosquitto(), "-c", str(config)]
        with self._open_log() as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            await self._wait_ready(self._process)
        except BaseException:
            await self.kill()
            raise

    async def terminate(self) -> None:
        """Shut it down in order: it saves what it retains and publishes the wills of all who are connected."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """Kill it: it keeps what it last saved, and publishes no wills."""
        await self._end(signal.SIGKILL)

    async def restart(self) -> None:
        """Shut it down in order and start it again on the same port."""
        await self.terminate()
        await self.start()

    def pause(self) -> None:
        """Stop the process where it is: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._signal(signal.SIGCONT)

    async def wait(self) -> int:
        """Wait for the process to end by itself and return its exit status."""
        return await self._process.wait() if self._process else 0

    async def _start_on_some_port(self) -> None:
        ports = listener_ports(self._read_template())
        if len(ports) > 1:
            self.port = ports[0]
        if self.port:
            await self.start()
            return
        for tries_left in reversed(range(_PORT_TRIES)):
            self.port = free_port(self.host)
            try:
                await self.start()
                return
            except MosquittoError as error:
                if not tries_left or "Address already in use" not in error.log:
                    raise

    def _write_config(self) -> Path:
        folder = self._work_dir
        data_dir = self._data_dir or folder / "data"
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"cannot make its folder {data_dir}: {error.strerror}"
            raise MosquittoError(f"{problem}; choose one that can be written with --data-dir") from error
        changes = dict(self._changes)
        if os.geteuid() == 0:
            changes.setdefault("user", "root")
        path = folder / "mosquitto.conf"
        text = render_config(self._read_template(), port=self.port, data_dir=data_dir, changes=changes)
        self._is_tls = any(line.startswith("certfile ") for line in text.splitlines())
        path.write_text(text, encoding="utf-8")
        return path

    def _read_template(self) -> str:
        template = self._config or find_config()
        try:
            return template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problem = f"cannot read its configuration {template}: {why_unreadable(error)}; name another with --config"
            raise MosquittoError(f"{problem}, or leave it out for the shipped one") from error

    def _open_log(self) -> IO[bytes]:
        if self._is_log_shown:
            return os.fdopen(os.dup(2), "wb")
        return (self._work_dir / "log").open("wb")

    @property
    def _work_dir(self) -> Path:
        if self._folder is None:
            raise MosquittoError("it is an async context manager: enter it first")
        return Path(self._folder.name)

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while process.returncode is not None or not await self._answers():
                    if process.returncode is not None:
                        raise MosquittoError(self._why_ended(process.returncode), self._log_tail())
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError as error:
            problem = f"did not answer on {self.url} within {self._start_timeout_s:g} s"
            raise MosquittoError(problem, self._log_tail()) from error

    async def _answers(self) -> bool:
        if self._is_tls:
            ports = listener_ports(self._read_template())
            return all([await accepts_connections(self.host, port) for port in (*ports[1:], self.port)])
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            return False
        try:
            writer.write(_CONNECT_311)
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                answer = await reader.read(1)
            return answer == bytes([_CONNACK])
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _why_ended(self, status: int) -> str:
        where = "its own lines above have the cause" if self._is_log_shown else "its last lines"
        return f"ended with status {status} at its start; {where}"

    def _log_tail(self) -> str:
        return read_tail(self._work_dir / "log", max_lines=_LOG_TAIL_LINES)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal; not through `Process.send_signal`, which on CPython 3.11 may reap the child unseen."""
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._signal(number)
        self._signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        self._process = None

    async def _clean_up(self) -> None:
        try:
            await self.terminate()
        finally:
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None


def _end_with_parent() -> list[str]:
    """Linux: have the kernel end it when we die, however we die; elsewhere a killed parent leaves it running."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
