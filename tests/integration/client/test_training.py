"""One training process, real: whatever it does, the right reason is told and nothing of it is left.

The programs here speak the pipe themselves, so that what is shown needs neither Flower nor a server.
"""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedops_mqtt.core.client import Identity
from fedops_mqtt.core.client_state import PhaseReport
from fedops_mqtt.device.training_process import TrainingOptions, TrainingProcess, mark_of
from fedops_mqtt.protocol import Outcome, Phase, RunStart
from fedops_mqtt.runtime.processes import MARK, kill_marked
from fedops_mqtt.training.pipe import EndedReport, Job, MetricsReport

PREAMBLE = """
import json, os, signal, sys, time
def say(**report):
    os.write(1, (json.dumps(report) + chr(10)).encode())
job = json.loads(sys.stdin.readline())
"""
READY = "say(report='phase', phase='training', round=1)\n"


def job_for(folder: Path) -> Job:
    return Job(
        app="none:app",
        import_paths=(),
        identity=Identity(task_id="t", client_mac="02:00:00:00:00:01", client_name="pi", instance="i"),
        start=RunStart(run_id="r1", attempt=1, launch=1, server_ip="127.0.0.1:1", token="the-token"),
        state_folder=folder,
        join_s=5,
        rejoin_s=5,
    )


class Trial:
    """A training that runs `program`, and what it reported."""

    def __init__(self, folder: Path, program: str, *, grace_s: float = 20, run_limit_s: float = 300) -> None:
        self.folder = folder
        self.reports: list[PhaseReport | MetricsReport] = []
        self.ready = asyncio.Event()
        options = TrainingOptions(
            state_folder=folder,
            stop_grace_s=grace_s,
            run_limit_s=run_limit_s,
            stderr_lines=20,
            command=(sys.executable, "-c", PREAMBLE + program),
        )
        self.training = TrainingProcess(job=job_for(folder), options=options, on_report=self._take)

    def _take(self, report: PhaseReport | MetricsReport) -> None:
        self.reports.append(report)
        self.ready.set()

    async def run(self) -> EndedReport:
        ended = await self.training.run()
        self.assert_nothing_is_left()
        return ended

    def assert_nothing_is_left(self) -> None:
        assert self.training.pid is not None
        assert processes_marked(mark_of(self.folder)) == []
        with pytest.raises(ProcessLookupError):
            os.kill(self.training.pid, 0)


def processes_marked(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and f"{MARK}={mark}".encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


async def test_a_training_that_finishes_reports_it_and_its_reports_arrive(tmp_path: Path) -> None:
    program = READY + "say(report='metrics', kind='round', round=1, values={'loss': 0.5})\n"
    trial = Trial(tmp_path, program + "say(report='ended', outcome='finished')")
    assert await trial.run() == EndedReport(outcome=Outcome.FINISHED)
    assert [report.round for report in trial.reports] == [1, 1]
    assert isinstance(trial.reports[0], PhaseReport)
    assert trial.reports[0].phase is Phase.TRAINING


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('last words', file=sys.stderr); os._exit(3)", "exit code 3\nlast words"),
        ("raise ValueError('boom')", "ValueError: boom"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL (out of memory?)"),
        ("pass", "ended without a result, exit code 0"),
    ],
)
async def test_a_training_that_dies_is_failed_with_what_killed_it(tmp_path: Path, program: str, reason: str) -> None:
    ended = await Trial(tmp_path, program).run()
    assert ended.outcome is Outcome.FAILED
    assert reason in (ended.reason or "")


async def test_a_flood_of_output_costs_no_memory_and_leaves_the_last_lines(tmp_path: Path) -> None:
    flood = "block = b'x' * 2**20\nfor _ in range(128): os.write(2, block)\n"
    flood += "for number in range(100): print('line', number, file=sys.stderr)\nos._exit(1)"
    before = rss_bytes()
    ended = await Trial(tmp_path, flood).run()
    assert (ended.reason or "").splitlines()[1:] == [f"line {number}" for number in range(80, 100)]
    assert rss_bytes() - before < 30 * 2**20


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_garbage_among_the_reports_is_dropped(tmp_path: Path) -> None:
    garbage = "os.write(1, b'{}' + bytes(10) + b'x' * 200_000 + bytes([10]) + b'[1]' + bytes([10, 255, 10]))\n"
    trial = Trial(tmp_path, garbage + READY + "say(report='ended', outcome='finished')")
    assert (await trial.run()).outcome is Outcome.FINISHED
    assert len(trial.reports) == 1


async def test_a_server_that_moves_before_the_process_begins_is_the_one_it_gets(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "say(report='ended', outcome='finished', reason=str(job['start']['server_ip']))")
    trial.training.redirect("127.0.0.1:2", 2)
    assert (await trial.run()).reason == "127.0.0.1:2"


async def test_a_stop_ends_the_process_at_once(tmp_path: Path) -> None:
    trial = Trial(tmp_path, READY + "time.sleep(600)")
    assert await stopped(trial) == EndedReport(outcome=Outcome.STOPPED, reason="by hand")


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    trial = Trial(tmp_path, deaf + READY + "time.sleep(600)", grace_s=0.2)
    assert (await stopped(trial)).outcome is Outcome.STOPPED


async def stopped(trial: Trial) -> EndedReport:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(trial.run(), name="trial")
        await trial.ready.wait()
        trial.training.stop("by hand")
    return running.result()


async def test_a_training_over_its_limit_is_ended(tmp_path: Path) -> None:
    ended = await Trial(tmp_path, "time.sleep(600)", run_limit_s=0.3).run()
    assert ended == EndedReport(outcome=Outcome.FAILED, reason="run limit of 0.3 s passed")


async def test_children_are_ended_too_those_in_a_session_of_their_own_among_them(tmp_path: Path) -> None:
    forks = """
if os.fork() == 0:
    time.sleep(600)
if os.fork() == 0:
    os.setsid()
    time.sleep(600)
say(report='ended', outcome='finished')
os._exit(0)
"""
    assert (await Trial(tmp_path, forks).run()).outcome is Outcome.FINISHED


async def test_a_process_that_reported_its_end_and_stays_is_killed(tmp_path: Path) -> None:
    ended = await Trial(tmp_path, "say(report='ended', outcome='finished')\ntime.sleep(600)", grace_s=0.2).run()
    assert ended.outcome is Outcome.FINISHED


async def test_a_cancelled_training_leaves_nothing(tmp_path: Path) -> None:
    trial = Trial(tmp_path, READY + "time.sleep(600)")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(trial.run(), name="trial")
        await trial.ready.wait()
        running.cancel()
    assert running.cancelled()
    trial.assert_nothing_is_left()


async def test_a_program_that_cannot_be_started_is_failed_with_the_cause(tmp_path: Path) -> None:
    options = TrainingOptions(
        state_folder=tmp_path, stop_grace_s=1, run_limit_s=5, stderr_lines=20, command=("/none/python",)
    )
    ended = await TrainingProcess(job=job_for(tmp_path), options=options, on_report=print).run()
    assert ended.outcome is Outcome.FAILED
    assert "could not be started" in (ended.reason or "")


async def test_the_child_gets_neither_the_daemons_secrets_nor_flowers_telemetry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDOPS_MQTT_BROKER_PASSWORD", "hunter2")
    monkeypatch.setenv("KEPT", "yes")
    program = "say(report='ended', outcome='finished', reason=json.dumps([dict(os.environ), sys.argv]))"
    reason = (await Trial(tmp_path, program).run()).reason or ""
    assert "hunter2" not in reason
    assert "the-token" not in reason
    assert '"KEPT": "yes"' in reason
    assert '"FLWR_TELEMETRY_ENABLED": "0"' in reason


def test_only_what_carries_its_mark_is_killed(tmp_path: Path) -> None:
    mine, other = mark_of(tmp_path / "a"), mark_of(tmp_path / "b")
    sleeper = (sys.executable, "-c", "import time; print(flush=True); time.sleep(600)")
    with (
        subprocess.Popen(sleeper, env={**os.environ, MARK: mine + "1"}, stdout=subprocess.PIPE) as marked,
        subprocess.Popen(sleeper, env={**os.environ, MARK: other + "1"}, stdout=subprocess.PIPE) as unmarked,
    ):
        assert marked.stdout is not None
        assert unmarked.stdout is not None
        marked.stdout.readline()
        unmarked.stdout.readline()
        assert kill_marked(mine) == 1
        assert marked.wait(300) == -signal.SIGKILL
        assert unmarked.poll() is None
        unmarked.kill()
