"""A process is told from another one that had its id before."""

import os
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from fedops_mqtt.runtime.process_identity import find_processes, is_process, process_key

LAST_ID = Path("/proc/sys/kernel/ns_last_pid")
MARK = "FEDOPS_TEST_IDENTITY"


@pytest.fixture
def mark() -> str:
    return uuid4().hex


def sleeper(mark: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, MARK: mark})


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


@pytest.mark.skipif(not os.access(LAST_ID, os.W_OK), reason="only root, on Linux, chooses the id of a new process")
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
