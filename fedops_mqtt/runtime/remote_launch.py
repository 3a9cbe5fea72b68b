"""Runs one FL server on the machine that a launch command reaches: `python3 -m fedops_mqtt.runtime.remote_launch`.

`start` reads an order (JSON) from standard input, or from files that are its parts, starts the server in a session of
its own and copies its log to standard output; `attach` copies the log again; `stop` sends a signal; `alive` prints a
line while the process runs. The server does not depend on the connection: when standard output breaks, it goes on.
Its end is reported in the last line, which begins with `END_MARK`. Only light imports: this process
stays as long as the server.
"""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import platformdirs

from fedops_mqtt.runtime.files import sync_file, write_atomically
from fedops_mqtt.runtime.process_identity import is_given_anew, is_process, key_of_started, process_key

START_MARK = "[fedops-mqtt] FL server started: "
END_MARK = "[fedops-mqtt] FL server ended: "
"""Begins the last line; after it a JSON object with `status` (None where it is unknown), `final_status` and the order's
`nonce`: what the server prints, and what its clients make it print, is in the same log."""

EXIT_NOT_STARTED = 70
POLL_S = 0.2
FENCE_GRACE_S = 5.0
"""An earlier launch of the run that still lives here is given this long before it is killed."""
EXIT_WAIT_S = 2.0
KEEP_S = 7 * 86400.0
"""What is left of an ended launch (log, outcome) is deleted after this, when another one starts."""

_CLAIM, _PROCESS, _EXIT, _LOG = "claim.json", "process.json", "exit", "server.log"
_NONCE = "nonce"
_FILES, _FINAL_STATUS, _STOP_REASON = "files", "final-status.json", "stop-reason"
_CONFIG = "FEDOPS_MQTT_CONFIG"
"""A settings file of this machine, or of an image, is another role's: the order has the server's settings."""


class LaunchFolder:
    """What this machine keeps of one launch: its process, its log, its secrets while it runs."""

    def __init__(self, state_dir: Path, run_id: str, launch: int) -> None:
        self.run_id, self.launch = run_id, launch
        self.path = state_dir / "launches" / f"{run_id}.{launch}"

    @property
    def pid(self) -> int | None:
        """The server's process id; None where none was started."""
        return self._process(_PROCESS)[0]

    @property
    def is_alive(self) -> bool:
        """True while the server's process runs, or is being started."""
        server = self._process(_PROCESS)
        return is_process(*(self.starter if server[0] is None else server))

    def claim(self, facts: Mapping[str, object]) -> bool:
        """Be the first to start this launch, or to prevent its start; False: another process was first."""
        if (self.path / _CLAIM).exists():  # asked first: a full disk must not hide it
            return False
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        mine = self.path / f"{_CLAIM}.{os.getpid()}"
        try:
            mine.write_text(json.dumps(facts), encoding="ascii")
            sync_file(mine)
            os.link(mine, self.path / _CLAIM)
        except FileExistsError:
            return False
        finally:
            mine.unlink(missing_ok=True)
        return True

    def note_process(self) -> None:
        """Write down the calling process as the server's; called in it, before the server's program takes over."""
        write_atomically(self.path / _PROCESS, json.dumps(_this_process()).encode())

    @property
    def starter(self) -> tuple[int | None, str | None]:
        """The process that started the server: its id and key."""
        return self._process(_CLAIM)

    def signal(self, number: int) -> None:
        """Send a signal to the server and its group; nothing when it has ended."""
        pid = self.pid
        if pid is not None and self.is_alive:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)  # not by runtime/processes, which brings asyncio: only light imports here

    def kill_rest(self) -> None:
        """Kill what the ended server left in its group."""
        pid, key = self._process(_PROCESS)
        if pid is not None and not is_given_anew(pid, key):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def _process(self, name: str) -> tuple[int | None, str | None]:
        try:
            facts = json.loads((self.path / name).read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):  # the latter after a power cut
            return None, None
        pid, started_at = facts.get("pid"), facts.get("started_at")
        if started_at is not None:  # a program of before, whose server may still run
            return pid, key_of_started(pid, started_at)
        return pid, facts.get("key")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one verb; a sentence on standard error and status 70 where it cannot be done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    state_dir = (
        Path(given.pop(0).removeprefix("--state-dir=")) if given and given[0].startswith("--state-dir=") else None
    )
    verbs: dict[str, Callable[..., int]] = {"start": _start, "attach": _attach, "stop": _stop, "alive": _alive}
    try:
        # As runtime/machine has it, whose imports this process would keep in memory as long as the server lives.
        default = platformdirs.user_state_dir("fedops-mqtt", appauthor=False)
        folder = (state_dir or Path(default)).expanduser()
        return verbs[given[0]](folder, *given[1:])
    except (KeyError, IndexError, TypeError):
        print("usage: remote_launch [--state-dir=DIR] start [FILE…] | attach RUN LAUNCH OFFSET | stop RUN LAUNCH SIGNAL"
              " | alive RUN LAUNCH", file=sys.stderr)  # fmt: skip
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"fedops-mqtt on {socket.gethostname()}: {error}", file=sys.stderr)
    return EXIT_NOT_STARTED


def _start(state_dir: Path, *order_files: str) -> int:
    parts = [Path(each).read_bytes() for each in order_files] or [sys.stdin.buffer.read()]
    order = json.loads(b"".join(parts))
    folder = LaunchFolder(state_dir, order["run_id"], int(order["launch"]))
    if folder.pid is not None:  # the same order came twice
        return _follow(folder, 0, None)
    if not folder.claim(_this_process()):
        raise ValueError(f"launch {folder.launch} of run {folder.run_id} came here before, or was ended before it came")
    if (nonce := order.get("nonce")) is not None:  # a manager of before has none
        write_atomically(folder.path / _NONCE, nonce.encode())
    _prune(state_dir / "launches")
    _fence(folder)
    command = order["command"] or [sys.executable, "-m", order["module"]]
    environment = _environment(folder, order)
    server = _spawn(folder, [*command, *order["args"]], order["cwd"], environment)
    for number in (signal.SIGTERM, signal.SIGINT):  # of a container or job, this process is signalled, not the server
        signal.signal(number, lambda number, frame: folder.signal(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the end of a connection with a terminal
    print(f"{START_MARK}process {server.pid} on {socket.gethostname()}", file=sys.stderr, flush=True)
    return _follow(folder, 0, server)


def _spawn(
    folder: LaunchFolder, command: Sequence[str], cwd: str | None, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    with (folder.path / _LOG).open("ab") as log:
        try:
            return subprocess.Popen(
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=folder.note_process,  # on disk before the server's program runs
            )
        except OSError:
            (folder.path / _PROCESS).unlink(missing_ok=True)
            raise


def _attach(state_dir: Path, run_id: str, launch: str, offset: str) -> int:
    folder = LaunchFolder(state_dir, run_id, int(launch))
    if folder.pid is None:
        raise ValueError(f"launch {launch} of run {run_id} was not started here")
    return _follow(folder, int(offset), None)


def _stop(state_dir: Path, run_id: str, launch: str, name: str) -> int:
    folder = LaunchFolder(state_dir, run_id, int(launch))
    if not folder.claim({}) and folder.is_alive:
        if reason := sys.stdin.buffer.read():
            with suppress(OSError):  # a full disk: it is ended without the reason
                write_atomically(folder.path / _STOP_REASON, reason)
        folder.signal(signal.Signals[f"SIG{name}"])
    return 0


def _alive(state_dir: Path, run_id: str, launch: str) -> int:
    folder = LaunchFolder(state_dir, run_id, int(launch))
    if not folder.claim({}) and folder.is_alive:
        print(f"process {folder.pid} on {socket.gethostname()}")
    return 0


def _environment(folder: LaunchFolder, order: Mapping[str, Any]) -> dict[str, str]:
    """Write the order's files where only this user reads them; return the server's whole environment."""
    bin_folder = str(Path(sys.executable).parent)
    search_path = os.pathsep.join((bin_folder, os.environ.get("PATH", os.defpath)))
    inherited = {name: value for name, value in os.environ.items() if name != _CONFIG}
    environment = {"PYTHONUNBUFFERED": "1", **inherited, "PATH": search_path, **order["environment"]}
    places = {"final_status_file": folder.path / _FINAL_STATUS, "stop_reason_file": folder.path / _STOP_REASON}
    (folder.path / _FILES).mkdir(exist_ok=True, mode=0o700)
    for name, content in order["files"].items():
        places[name] = folder.path / _FILES / Path(name).name
        write_atomically(places[name], base64.b64decode(content))
    return environment | {f"FEDOPS_MQTT_{name.upper()}": str(path) for name, path in places.items()}


def _fence(folder: LaunchFolder) -> None:
    """End every earlier launch of the run that still lives on this machine."""
    for path in folder.path.parent.glob(f"{folder.run_id}.*"):
        launch = path.name.rpartition(".")[2]
        if not launch.isdigit() or int(launch) >= folder.launch:
            continue
        earlier = LaunchFolder(path.parent.parent, folder.run_id, int(launch))
        for number, grace_s in ((signal.SIGTERM, FENCE_GRACE_S), (signal.SIGKILL, FENCE_GRACE_S)):
            earlier.signal(number)
            until = time.monotonic() + grace_s
            while earlier.is_alive and time.monotonic() < until:
                time.sleep(POLL_S)
        if earlier.is_alive:
            raise ValueError(f"launch {launch} of run {folder.run_id} does not end")


def _follow(folder: LaunchFolder, offset: int, server: "subprocess.Popen[bytes] | None") -> int:
    """Copy the log from a byte on until the server has ended; then the last line, and its status as ours."""
    out: IO[bytes] | None = sys.stdout.buffer
    with (folder.path / _LOG).open("rb") as log:
        log.seek(offset)
        is_running = True
        while is_running:
            is_running = server.poll() is None if server is not None else folder.is_alive
            out = _copy(log, out)
            if is_running:
                if out is None and server is None:
                    return 0  # the output is closed, and the process that started the server waits for it
                time.sleep(POLL_S)
    if server is not None:
        with suppress(OSError):  # a full disk: only this process knows the status
            write_atomically(folder.path / _EXIT, str(server.returncode).encode())
        folder.kill_rest()
        shutil.rmtree(folder.path / _FILES, ignore_errors=True)
    status = _read_exit(folder) if server is None else server.returncode
    if out is not None:
        final = folder.path / _FINAL_STATUS
        facts = {"status": status, "final_status": final.read_text(encoding="utf-8") if final.exists() else None}
        with suppress(FileNotFoundError):
            facts["nonce"] = (folder.path / _NONCE).read_text(encoding="utf-8")
        begin = "" if _ends_with_newline(folder.path / _LOG) else "\n"
        out.write(f"{begin}{END_MARK}{json.dumps(facts)}\n".encode())
        out.flush()
    return (128 - status if status < 0 else status) if status is not None else 0


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as log:
        if log.seek(0, os.SEEK_END) == 0:
            return True
        log.seek(-1, os.SEEK_END)
        return log.read(1) == b"\n"


def _copy(log: IO[bytes], out: IO[bytes] | None) -> IO[bytes] | None:
    """Copy what is new; return None once the output is closed."""
    while out is not None and (part := log.read(65536)):
        try:
            out.write(part)
            out.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains as it exits
            return None
    return out


def _read_exit(folder: LaunchFolder) -> int | None:
    """Return the server's status, which its starter writes right after its end; None: the starter was killed too."""
    until = time.monotonic() + EXIT_WAIT_S
    while is_process(*folder.starter) and not (folder.path / _EXIT).exists() and time.monotonic() < until:
        time.sleep(POLL_S)
    try:
        return int((folder.path / _EXIT).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _this_process() -> dict[str, object]:
    return {"pid": os.getpid(), "key": process_key(os.getpid())}


def _prune(launches: Path) -> None:
    for path in launches.glob("*.*"):
        run_id, _, launch = path.name.rpartition(".")
        is_old = launch.isdigit() and time.time() - path.stat().st_mtime > KEEP_S
        if is_old and not LaunchFolder(launches.parent, run_id, int(launch)).is_alive:
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
