"""The demo as a newcomer runs it: to its end, interrupted, and killed."""

import asyncio
import json
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from leftovers import processes
from yard import HERE, TIMEOUT_S, Installed, Yard, eventually

from fedops_mqtt.demo.reaper import MARK


@pytest.mark.long
async def test_the_demo_completes_and_reports_it_in_its_last_line(yard: Yard, tmp_path: Path) -> None:
    demo = await yard.run("demo", "--json", "--folder", str(tmp_path / "models"))
    assert demo.process.returncode == 0, demo.stderr + demo.stdout
    result = json.loads(demo.stdout.splitlines()[-1])
    assert result["outcome"] == "completed"
    assert result["accuracy"] >= 0.90
    assert (result["rounds"], result["clients"]) == (5, 5)
    assert 0 < result["trigger_to_training_ms"]["p50"] <= result["trigger_to_training_ms"]["max"]
    assert result["seconds"] > 0
    assert _is_file(result["model_path"])
    assert Path(result["model_path"]).is_relative_to(tmp_path / "models")


async def test_options_reach_the_run_and_a_pipe_gets_plain_lines(yard: Yard, tmp_path: Path) -> None:
    demo = await yard.run("demo", "--clients", "2", "--rounds", "1", "--folder", str(tmp_path / "m"))
    assert demo.process.returncode == 0, demo.stderr + demo.stdout
    assert "\x1b" not in demo.stdout
    assert "1 round with 2 clients" in demo.stdout
    named = next(line.split()[0] for line in demo.stdout.splitlines() if "demo --keep" in line)
    assert shutil.which(named) or (HERE / named).is_file()  # it can be typed where the demo was
    model = next(line.partition(": ")[2] for line in demo.stdout.splitlines() if line.startswith("The global model"))
    assert _is_file(model)


@pytest.mark.parametrize(
    "moment",
    [
        "^starting",
        pytest.param("^bus status=connected", marks=pytest.mark.long),
        pytest.param("^client .*status=online", marks=pytest.mark.long),
        pytest.param("^server .*status=ready", marks=pytest.mark.long),
        pytest.param("^round .*round=1", marks=pytest.mark.long),
    ],
)
async def test_ctrl_c_at_any_moment_leaves_nothing_behind(moment: str, yard: Yard, tmp_path: Path) -> None:
    demo = await _start_demo(yard, tmp_path)
    await demo.until_printed(moment)
    traces = await _traces_of(demo)
    assert await demo.end(signal.SIGINT) == 130
    _assert_nothing_is_left(traces, tmp_path)


@pytest.mark.long
async def test_a_second_ctrl_c_leaves_nothing_behind_either(yard: Yard, tmp_path: Path) -> None:
    demo = await _start_demo(yard, tmp_path)
    await demo.until_printed("^server .*status=ready")
    traces = await _traces_of(demo)
    demo.process.send_signal(signal.SIGINT)
    await eventually(lambda: not _is_pending(demo.process.pid, signal.SIGINT))  # two that are pending become one
    assert await demo.end(signal.SIGINT) == 130
    _assert_nothing_is_left(traces, tmp_path)


async def test_a_killed_demo_takes_its_processes_and_files_with_it(yard: Yard, tmp_path: Path) -> None:
    demo = await _start_demo(yard, tmp_path)
    await demo.until_printed("^server .*status=ready")
    traces = await _traces_of(demo)
    await demo.end(signal.SIGKILL)
    await asyncio.to_thread(psutil.wait_procs, traces.processes, TIMEOUT_S)
    _assert_nothing_is_left(traces, tmp_path)


@pytest.mark.long
async def test_a_kept_demo_leaves_its_fleet_running_until_it_is_ended(yard: Yard, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    demo = await yard.start("demo", "--clients", "2", "--rounds", "1", "--keep", "--folder", str(folder))
    manager = (await demo.until_printed(r"start digits --manager (\S+) --wait")).group(1)
    again = await yard.run("start", "digits", "--rounds", "1", "--manager", manager, "--wait", "--json")
    assert again.process.returncode == 0, again.stderr
    traces = await _traces_of(demo)
    next(each for each in traces.processes if any("daemon" in word for word in each.cmdline())).kill()
    await demo.until_printed(r"client-\d ended with status -9; everything else goes on")
    assert await demo.end(signal.SIGINT) == 0
    orphaned = (psutil.STATUS_ZOMBIE,)  # of the daemon that was killed: dead, and nobody's to bury but the system's
    assert not [each for each in traces.processes if each.is_running() and each.status() not in orphaned]
    assert len(list(folder.rglob("*.safetensors"))) == 2


def _is_pending(pid: int, number: signal.Signals) -> bool:
    """Tell whether a signal was sent to a process and has not been delivered yet (proc(5), ShdPnd)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd"))
    return bool(mask & 1 << number - 1)


def _is_file(path: str) -> bool:
    return Path(path).is_file()


async def _start_demo(yard: Yard, tmp_path: Path) -> Installed:
    return await yard.start("demo", "--clients", "3", "--rounds", "500", "--folder", str(tmp_path / "models"))


class _Traces:
    """Everything that a demo has started so far, by its mark, and where its files are."""

    def __init__(self, processes: list[psutil.Process], folders: set[str]) -> None:
        self.processes = processes
        self.folders = folders


async def _traces_of(demo: Installed) -> _Traces:
    return await asyncio.to_thread(_look_for_traces, demo.process.pid)


def _look_for_traces(pid: int) -> _Traces:
    """The demo's own mark is in its children's environment; grandchildren in sessions of their own carry it too."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        children = psutil.Process(pid).children()
        found = {_environ(child).get(MARK) for child in children} - {None}
        if found:
            break
        time.sleep(0.02)
    environments = [(process, _environ(process)) for process in processes()]
    marked = [(process, environment) for process, environment in environments if environment.get(MARK) in found]
    folders = {environment["TMPDIR"] for _, environment in marked}
    return _Traces([*(process for process, _ in marked), *children], folders)


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _assert_nothing_is_left(traces: _Traces, tmp_path: Path) -> None:
    alive = [process for process in traces.processes if process.is_running()]
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert traces.folders
    assert not [folder for folder in traces.folders if Path(folder).exists()]
    assert not (tmp_path / "models").exists()
