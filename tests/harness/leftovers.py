"""A test run leaves no process and no file, however it ends: by itself, by Ctrl-C, by `kill -9`.

All temporary files of a run are in one folder (`--basetemp` takes tests' own elsewhere, to look at), and all of its
processes carry a mark in their environment. HOME is in that folder too: wandb, Flower, Keras, Chromium and others write
there; what a person has configured or cached is still used. This module, run as a program, waits for the end of its
stdin, which comes however the run ends; then it ends and removes what is left. Processes that are left after a whole
run are a fault of a test: they are named, and the run fails.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

MARK = "TEST_RUN_OF_FEDOPS_MQTT"
"""Environment variable that every process of a run inherits; its value is the folder."""
GRACE_S = 120.0
"""A process that was told to end does so within this, on a machine ten times slower too."""
POLL_S = 0.1
ENDED = "ended"
"""Written to the keeper by a run that has ended by itself: what is left may be about to end; else it is killed."""

FROM_HOME = {
    "GIT_CONFIG_GLOBAL": ".gitconfig",
    "PIP_CONFIG_FILE": ".config/pip/pip.conf",
    "UV_CONFIG_FILE": ".config/uv/uv.toml",
    "PIP_CACHE_DIR": ".cache/pip",
    "UV_CACHE_DIR": ".cache/uv",
    "PYENV_ROOT": ".pyenv",
}
"""What tests use of a person's home where it is there, by the variable that names it."""

KEEPER = pytest.StashKey["subprocess.Popen[str]"]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give the run its folder and its keeper; the workers of a run are its processes."""
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    folder = tempfile.mkdtemp(prefix="fedops-tests-")
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    # gRPC, boto and FedOps' own programs ask the proxy of whoever runs the tests even for this machine.
    os.environ |= {MARK: folder, "TMPDIR": folder, "no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}
    _move_home(Path(folder) / "home")
    # Where an image sets it, hundreds of processes and each worker would compile the same modules again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    tempfile.tempdir = None
    config.stash[KEEPER] = subprocess.Popen(
        [sys.executable, __file__, folder, str(GRACE_S)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _move_home(home: Path) -> None:
    real = Path.home()
    kept = {name: str(real / path) for name, path in FROM_HOME.items() if (real / path).exists()}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        os.environ.pop(name, None)
    home.mkdir()
    os.environ |= {"HOME": str(home), **{name: path for name, path in kept.items() if name not in os.environ}}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Have everything cleared up; what was left by a run that was not interrupted fails it."""
    keeper = session.config.stash.get(KEEPER, None)
    if keeper is None:
        return
    is_interrupted = exitstatus == pytest.ExitCode.INTERRUPTED
    left, _ = keeper.communicate("" if is_interrupted else ENDED)
    if left and not is_interrupted:
        print(f"\nprocesses that tests left behind:\n{left}", file=sys.stderr)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def keep(folder: str, grace_s: float) -> None:
    """Wait for the end of a run; end what is left of it, name it on stdout, and remove its folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    has_ended = sys.stdin.read() == ENDED
    deadline = time.monotonic() + (grace_s if has_ended else 0.0)
    while list(marked(folder)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    names = [(process.pid, name_of(process)) for process in marked(folder)]
    while left := list(marked(folder)):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(POLL_S)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(BrokenPipeError):  # a run that was killed reads no names
        os.write(sys.stdout.fileno(), "".join(f"{pid} {name}\n" for pid, name in names).encode(errors="replace"))


def processes() -> Iterator[psutil.Process]:
    """Yield the processes of now; psutil keeps those that it found before, also where another has the id since."""
    psutil.process_iter.cache_clear()
    return psutil.process_iter()


def marked(folder: str) -> Iterator[psutil.Process]:
    for process in processes():
        try:
            if process.environ().get(MARK) == folder and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, OSError):
            continue


def name_of(process: psutil.Process) -> str:
    try:
        return f"{' '.join(process.cmdline())} (in {Path(process.cwd()).name})"
    except psutil.Error:
        return "gone"


if __name__ == "__main__":
    keep(sys.argv[1], float(sys.argv[2]))
