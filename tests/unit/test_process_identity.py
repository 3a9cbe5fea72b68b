"""A process is told from another one that had its id before."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import ParamSpec
from uuid import uuid4

import psutil
import pytest

from fedops_mqtt.device.training_process import SpawnedProcess, TrainingOptions
from fedops_mqtt.runtime.process_identity import find_processes, is_process, process_key
from fedops_mqtt.runtime.processes import kill_all, kill_rest

LAST_ID = Path("/proc/sys/kernel/ns_last_pid")
MARK = "FEDOPS_TEST_IDENTITY"
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
IN_NAMESPACE = "FEDOPS_TEST_IN_NAMESPACE"
P = ParamSpec("P")


def chooses_ids() -> bool:
    """Whether this user may, in a namespace: a container's root may not."""
    return shutil.which(NAMESPACE[0]) is not None and not subprocess.run([*NAMESPACE, "true"], check=False).returncode


def with_ids_of_its_own(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a namespace of process ids: whoever chooses ids has those of all others given anew at once."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if IN_NAMESPACE in os.environ:
            test(*args, **kwargs)
            return
        command = [*NAMESPACE, sys.executable, "-m", "pytest", "--numprocesses=0", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"{__file__}::{test.__name__}"],
            env={**os.environ, IN_NAMESPACE: "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout

    return pytest.mark.skipif(
        IN_NAMESPACE not in os.environ and not chooses_ids(),
        reason="only root, on Linux, chooses the id of a new process",
    )(run)


SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def mark() -> str:
    return uuid4().hex


def sleeper(mark: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", SLEEP], env={**os.environ, MARK: mark})


def found(mark: str) -> psutil.Process:
    """Return what is found once the program has taken over; before that a child has its parent's environment."""
    while not (processes := list(find_processes({MARK: mark}))):
        pass
    (process,) = processes
    return process


def until_dead(left: psutil.Process) -> None:
    until = time.monotonic() + 300
    with suppress(psutil.NoSuchProcess):
        while left.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            assert time.monotonic() < until, "what it left lives on"


def test_a_process_is_known_by_its_id_and_key_until_it_has_ended() -> None:
    with sleeper("any") as process:
        key = process_key(process.pid)
        assert key is not None
        assert key != process_key(os.getpid())
        assert is_process(process.pid, key)
        assert not is_process(os.getpid(), key)
        assert not is_process(process.pid, None)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_process(process.pid, key), "a zombie does not run"
    assert process_key(process.pid) is None


@with_ids_of_its_own
def test_a_process_with_the_id_of_an_earlier_one_is_found_as_itself(mark: str) -> None:
    with sleeper(mark) as first:
        before, key = found(mark), process_key(first.pid)
        first.kill()
    time.sleep(0.05)  # some clock ticks: no two processes of one id begin in the same
    is_same_id = False
    while not is_same_id:  # another process of this machine may be faster
        LAST_ID.write_text(str(first.pid - 1))
        with sleeper(mark) as second:
            try:
                if is_same_id := second.pid == first.pid:
                    after = found(mark)
                    assert after.create_time() != before.create_time()
                    assert process_key(second.pid) not in (key, None)
                    assert not is_process(second.pid, key)
                    after.kill()  # psutil does not, of a process that it takes for another one
            finally:
                second.kill()


@with_ids_of_its_own
def test_a_ready_process_that_has_died_costs_no_process_with_its_id_and_leaves_none_behind(tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = f"""
import subprocess, sys
left = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
open({str(note)!r}, "w").write(str(left.pid))
"""
    options = TrainingOptions(
        state_folder=tmp_path, stop_grace_s=1, run_limit_s=1, stderr_lines=1, command=(sys.executable, "-c", code)
    )

    async def died() -> SpawnedProcess:
        ready = SpawnedProcess(options)
        await ready.begin()
        await ready.process.wait()
        return ready

    is_same_id = False
    with asyncio.Runner() as runner:
        while not is_same_id:  # another process of this machine may be faster
            ready = runner.run(died())
            left = psutil.Process(int(note.read_text()))
            LAST_ID.write_text(str(ready.process.pid - 1))
            with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as other:
                try:
                    is_same_id = other.pid == ready.process.pid
                    runner.run(ready.close())
                    os.kill(other.pid, 0)
                    assert psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE
                    until_dead(left)
                finally:
                    other.kill()


def test_what_is_left_of_a_group_is_killed_and_who_has_its_id_by_now_is_not(tmp_path: Path) -> None:
    note = tmp_path / "note"
    leave = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True)"
    with (
        note.open("w") as out,
        subprocess.Popen([sys.executable, "-c", leave], stdout=out, start_new_session=True) as ended,
    ):
        ended.wait()
    left = psutil.Process(int(note.read_text()))
    with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as stranger:
        try:
            kill_rest(stranger.pid)
            kill_rest(stranger.pid, "the key of the one that had this id")
            assert stranger.poll() is None
            assert left.status() != psutil.STATUS_ZOMBIE
            kill_rest(ended.pid)
            until_dead(left)
            kill_rest(stranger.pid, process_key(stranger.pid))
            assert stranger.wait() == -signal.SIGKILL
        finally:
            stranger.kill()


def test_the_end_of_a_training_costs_no_process_that_has_its_id_by_now() -> None:
    async def end_of_one_that_has_ended() -> None:
        training = await asyncio.create_subprocess_exec("true", start_new_session=True)
        await training.wait()
        with_that_id = SimpleNamespace(pid=stranger.pid, returncode=0, wait=training.wait)
        await kill_all(with_that_id, uuid4().hex)  # type: ignore[arg-type]

    with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as stranger:
        try:
            asyncio.run(end_of_one_that_has_ended())
            assert stranger.poll() is None
        finally:
            stranger.kill()
