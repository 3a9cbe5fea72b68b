"""What the benchmarks share: processes that end with them, what those weigh, the machine, tables.

Nothing here measures by itself; a figure's meaning stands where it is taken.
"""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from importlib.metadata import version
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
POLL_S = 0.005
MIB = 1024 * 1024


class Processes(AbstractContextManager):
    """Programs in sessions of their own, all of them killed, children too, when the block ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen] = []

    def start(self, command: Sequence[str], *, name: str, env: dict[str, str], **more) -> subprocess.Popen:
        """Start a program; what it prints goes to a file of this name."""
        beside = Path(sys.executable).parent  # Flower's commands look for each other on PATH
        variables = os.environ | {
            "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(HERE),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            **env,
        }
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(each) for each in command],
                env=variables,
                stderr=log,
                start_new_session=True,
                **({"stdout": log, "stdin": subprocess.DEVNULL} | more),
            )
        self._started.append(process)
        return process

    def module(self, *arguments: str, name: str, env: dict[str, str], **more) -> subprocess.Popen:
        """Start `python -m ...`."""
        return self.start([sys.executable, "-m", *arguments], name=name, env=env, **more)

    def command(self, *arguments: str, name: str, env: dict[str, str], **more) -> subprocess.Popen:
        """Start a command that is installed beside this Python."""
        program = Path(sys.executable).with_name(arguments[0])
        return self.start([str(program), *arguments[1:]], name=name, env=env, **more)

    def log_of(self, name: str) -> str:
        """Return what a program has printed."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def has_ended(self, pid: int) -> bool:
        """Return whether the process of that id is over; it is not asked after again by `check`."""
        ended = [process for process in self._started if process.pid == pid and process.poll() is not None]
        self._started = [process for process in self._started if process not in ended]
        return bool(ended)

    def processor_s(self) -> float:
        """Return the processor time that they have taken so far, their descendants included."""
        times = os.times()
        total = times.children_user + times.children_system  # of those that ended and were waited for
        for process in self._started:
            with suppress(psutil.NoSuchProcess):
                total += sum(sum(each.cpu_times()[:4]) for each in family(process.pid) if each.is_running())
        return total

    def check(self) -> None:
        """Raise when one of them has ended with an error."""
        for process in self._started:
            if process.poll() not in (None, 0, -signal.SIGKILL):
                raise RuntimeError(f"{process.args} ended with {process.returncode}, see {self._folder}")

    def __exit__(self, *_) -> None:
        for process in self._started:
            kill_family(process.pid)
        for process in self._started:
            process.wait()


def end_on_sigterm() -> None:
    """Have SIGTERM leave every block as Ctrl-C does: what was started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))


def kill_family(pid: int) -> None:
    """Kill a process, its group and all its descendants with -9."""
    with suppress(psutil.NoSuchProcess):
        for each in family(pid):
            with suppress(psutil.NoSuchProcess):
                each.kill()
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def resident_mib(pids: Iterable[int]) -> float:
    """Return the resident memory of these processes and their descendants now."""
    total = 0
    for pid in pids:
        for process in family(pid):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total / MIB


def peak_mib(pid: int) -> float:
    """Return the largest resident memory that this one process ever had (Linux, VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no VmHWM of {pid}")


def is_connected(pid: int, port: int) -> bool:
    """Return whether a process has a connection to this port."""
    with suppress(psutil.NoSuchProcess):
        for each in family(pid):
            for connection in each.net_connections("tcp"):
                if connection.raddr and connection.raddr.port == port and connection.status == "ESTABLISHED":
                    return True
    return False


def wait_until(is_true: Callable[[], bool], *, limit_s: float, what: str, poll_s: float = POLL_S) -> None:
    """Look again and again until it is true.

    Raises:
        TimeoutError: it did not become true.
    """
    end = time.monotonic() + limit_s
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(poll_s)


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def machine() -> dict[str, object]:
    """Return what a reader must know to compare figures."""
    return {
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("fedops-mqtt", "flwr", "aiomqtt", "uvicorn", "numpy")},
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def figure(value: float | None, unit: str = "") -> str:
    """Return a number as people read it: three digits that matter."""
    if value is None:
        return "-"
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def save_json(path: Path | None, result: object) -> None:
    """Write the result for machines, if asked to."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")
