"""A process is told from another one that had its id before."""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from fedops_mqtt.device.training_process import SpawnedProcess, TrainingOptions
from fedops_mqtt.runtime.process_identity import find_processes, is_process, process_key

LAST_ID = Path("/proc/sys/kernel/ns_last_pid")
MARK = "FEDOPS_TEST_IDENTITY"


def chooses_ids() -> bool:
    """Whether this user may, whatever the file's mode says: a container's root may not."""
    try:
        LAST_ID.write_text(LAST_ID.read_text())
    except OSError:
        return False
    return True


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


@pytest.mark.skipif(not chooses_ids(), reason="only root, on Linux, chooses the id of a new process")
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


@pytest.mark.skipif(not chooses_ids(), reason="only root, on Linux, chooses the id of a new process")
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
                    until = time.monotonic() + 300
                    with suppress(psutil.NoSuchProcess):
                        while left.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                            assert time.monotonic() < until, "what it left lives on"
                finally:
                    other.kill()
