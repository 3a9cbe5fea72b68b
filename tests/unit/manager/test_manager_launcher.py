import asyncio
import gc
import os
import signal
import sys
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from fedops_mqtt.manager import launcher
from fedops_mqtt.manager.launcher import LaunchOrder, ServerProcess
from fedops_mqtt.runtime.files import write_private
from fedops_mqtt.runtime.processes import LOG_TAIL_LINES, read_tail

BARE = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""The environment of a machine where nobody has set how Python prints."""


def order(tmp_path: Path, program: str, **changes: object) -> LaunchOrder:
    given = {
        "run_id": "run-1", "launch": 1, "command": [sys.executable, "-c", program], "cwd": tmp_path,
        "environment": launcher.child_environment(BARE, {}, {}), "log_path": tmp_path / "logs/server-1.log",
    }  # fmt: skip
    return LaunchOrder(**{**given, **changes})  # type: ignore[arg-type]


async def ended(process: ServerProcess) -> str:
    return await process.wait()


async def printed(process: ServerProcess) -> str:
    """Wait for the first words of a process: only then is its environment sure to be in `/proc`."""
    while not (said := read_tail(process.log_path)):  # noqa: ASYNC110 - a file tells nobody
        await asyncio.sleep(0.02)
    return said


async def gone(pid: int) -> None:
    """Wait until a killed process has died: the kernel takes its time to carry a signal out."""
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def test_a_server_has_a_session_of_its_own_and_its_output_goes_to_a_file(tmp_path: Path) -> None:
    program = "import os, sys; print('sid', os.getsid(0) == os.getpid()); print('err', file=sys.stderr)"
    process = await launcher.launch(order(tmp_path, program))
    assert await ended(process) == "FL server process exited with status 0"
    assert (tmp_path / "logs/server-1.log").read_text().splitlines() == ["sid True", "err"]


async def test_a_failed_server_is_reported_with_its_status_and_last_output(tmp_path: Path) -> None:
    process = await launcher.launch(order(tmp_path, "print('x\\n' * 50); raise SystemExit('no data')"))
    reason = await ended(process)
    assert reason.startswith("FL server process exited with status 1; last lines of its log: x\n")
    assert reason.endswith("no data")
    assert len(reason.splitlines()) == LOG_TAIL_LINES


async def test_a_killed_server_is_reported_with_its_signal(tmp_path: Path) -> None:
    process = await launcher.launch(order(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert await ended(process) == f"FL server process was ended by SIGKILL; its log {process.log_path} is empty"


async def test_a_server_that_a_signal_without_a_name_killed_is_told_with_its_number(tmp_path: Path) -> None:
    process = await launcher.launch(order(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 2)"))
    number = signal.SIGRTMIN + 2
    assert (
        await ended(process) == f"FL server process was ended by signal {number}; its log {process.log_path} is empty"
    )


async def test_a_server_that_does_not_end_when_asked_is_killed_with_its_children(tmp_path: Path) -> None:
    program = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    process = await launcher.launch(order(tmp_path, program))
    child = int(await printed(process))
    await process.end(None, "the test ends", grace_s=0.2)
    assert "SIGKILL" in process.exit_reason
    await gone(child)


async def test_what_a_server_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)"
    )
    process = await launcher.launch(order(tmp_path, program))
    await ended(process)
    child = int(read_tail(process.log_path))
    await gone(child)


async def test_another_manager_finds_a_server_by_process_and_key_and_no_other(tmp_path: Path) -> None:
    process = await launcher.launch(order(tmp_path, "import time; time.sleep(600)"))
    try:
        found = launcher.find(process.pid, process.key, process.log_path)
        assert found is not None
        assert found.is_running
        assert launcher.find(process.pid, f"{process.key}0", process.log_path) is None
    finally:
        await process.end(None, "the test ends", grace_s=5)
    assert launcher.find(process.pid, process.key, process.log_path) is None
    assert not found.is_running


async def test_a_server_whose_process_id_was_never_written_down_is_found_by_its_environment(tmp_path: Path) -> None:
    run_id = uuid4().hex  # the processes of other test runs are searched too
    environment = launcher.child_environment(os.environ, {"run_id": run_id, "launch": 2}, {})
    program = "import time; print('here', flush=True); time.sleep(600)"
    process = await launcher.launch(order(tmp_path, program, environment=environment))
    try:
        await printed(process)
        found = launcher.search(run_id, 2, process.log_path)
        assert found is not None
        assert found.pid == process.pid
        assert launcher.search(run_id, 3, process.log_path) is None
    finally:
        await process.end(None, "the test ends", grace_s=5)


async def test_a_manager_that_ends_during_a_launch_leaves_a_process_that_the_next_one_finds(tmp_path: Path) -> None:
    run_id = uuid4().hex
    environment = launcher.child_environment(BARE, {}, {"FEDOPS_MQTT_RUN_ID": run_id, "FEDOPS_MQTT_LAUNCH": "1"})
    started = order(tmp_path, "print('up', flush=True); import time; time.sleep(600)", environment=environment)
    launching = asyncio.create_task(launcher.launch(started))
    await asyncio.sleep(0)
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launching
    gc.collect()  # nobody holds the process any more, which is no fault
    while not (found := launcher.search(run_id, 1, started.log_path)):  # noqa: ASYNC110 - exec tells nobody
        await asyncio.sleep(0.02)
    gc.collect()
    await found.end(None, "over", grace_s=300)


async def test_a_command_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await launcher.launch(order(tmp_path, "", command=["/no/such/program"]))
    assert caught.value.filename == "/no/such/program"


def test_a_secret_is_readable_by_its_owner_only_even_where_an_older_file_was_not(tmp_path: Path) -> None:
    path = tmp_path / "secrets/run-1"
    path.parent.mkdir()
    path.touch(mode=0o644)
    write_private(path, b"\x01\xff".hex().encode())
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("01ff", 0o600)


def test_a_servers_environment_is_the_managers_then_the_launchers_then_the_tasks() -> None:
    said = {"broker": "mqtt://b:1", "advertise": None, "launch": 2}
    built = launcher.child_environment({"PATH": "/bin", "HOME": "/h"}, said, {"FEDOPS_MQTT_BROKER": "mqtt://task:1"})
    assert built["HOME"] == "/h"
    assert built["PATH"] == f"{Path(sys.executable).parent}:/bin"
    assert (built["FEDOPS_MQTT_BROKER"], built["FEDOPS_MQTT_LAUNCH"]) == ("mqtt://task:1", "2")
    assert "FEDOPS_MQTT_ADVERTISE" not in built


async def test_the_end_of_a_server_of_an_earlier_manager_costs_no_process_that_has_its_id_by_now(
    tmp_path: Path,
) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    try:
        await ServerProcess(stranger.pid, "the key of the server", tmp_path / "server-1.log", None).wait()
        assert psutil.Process(stranger.pid).status() != psutil.STATUS_ZOMBIE
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()
