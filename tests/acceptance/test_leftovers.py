"""A test run leaves no process and no temporary file, however it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from leftovers import MARK, processes
from yard import TIMEOUT_S, eventually

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
BUSY = (
    "tests/acceptance/test_runs.py::test_a_trigger_leads_to_training_and_to_finished_and_then_again",
    "tests/acceptance/test_watch.py::test_watch_at_a_terminal_draws_a_live_table_and_ctrl_c_leaves_it",
)


@contextmanager
def started_run(folder: Path, *tests: str) -> Iterator[subprocess.Popen[str]]:
    """A run of its own, as a person starts it at a terminal: Ctrl-C goes to its whole process group."""
    command = [sys.executable, "-m", "pytest", "-q", "-n2", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (
        (folder.parent / "said").open("w+") as said,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=said, stderr=said, text=True, start_new_session=True
        ) as run,
    ):
        yield run


def of_run(folder: Path) -> list[psutil.Process]:
    """The processes that have this folder in their environment."""
    return [each for each in processes() if str(folder) in environment_of(each).get(MARK, "")]


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return {} if process.status() == psutil.STATUS_ZOMBIE else process.environ()
    except (psutil.Error, OSError):
        return {}


def is_running_a_manager(folder: Path) -> bool:
    return any("manager" in command_of(each) for each in of_run(folder))


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended since it was listed
        return []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_a_run_that_is_interrupted_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    with started_run(folder, *BUSY) as run:
        await eventually(lambda: is_running_a_manager(folder))
        os.killpg(run.pid, number)
        run.wait(TIMEOUT_S)
        await eventually(lambda: not of_run(folder))
        await eventually(lambda: not list(folder.iterdir()))


LEAVING = """
import pathlib, subprocess, sys

def test_writes_into_its_home():
    (pathlib.Path.home() / "written").write_text("by a test")

def test_leaves_a_process():
    subprocess.Popen(["sleep", "3600"], start_new_session=True)
"""


def test_a_process_that_a_test_leaves_behind_fails_the_run_and_is_ended(tmp_path: Path) -> None:
    folder, program = tmp_path / "temporary", tmp_path / "test_leaving.py"
    folder.mkdir()
    program.write_text(LEAVING)
    (tmp_path / "conftest.py").write_text("import leftovers\nleftovers.GRACE_S = 5.0\nfrom leftovers import *\n")
    (tmp_path / "pytest.ini").write_text(f'[pytest]\npythonpath = "{ROOT / "tests" / "harness"}"\n')
    with started_run(folder, str(program)) as run:
        assert run.wait(TIMEOUT_S) == pytest.ExitCode.TESTS_FAILED
    assert "sleep 3600" in (tmp_path / "said").read_text()
    assert not (Path.home() / "written").exists()
    assert of_run(folder) == []
    assert list(folder.iterdir()) == []
