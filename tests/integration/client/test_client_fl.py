"""The training process itself, with a real FL server on the other side."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

from fedops_mqtt.core.client import Identity
from fedops_mqtt.core.client_state import PhaseReport
from fedops_mqtt.device.training_process import MODULE, TrainingOptions, TrainingProcess
from fedops_mqtt.protocol import MAX_METRICS, Outcome, Phase, RunStart
from fedops_mqtt.runtime.processes import OUTPUT_FOLDER, find_outputs, read_output
from fedops_mqtt.training.pipe import EndedReport, Job, MetricsReport, to_line

from client_testbed import PATIENCE_S, SECRET, MakeJob, ServeFl  # isort: skip


class Trial:
    """A real training of a job, and what it reported."""

    def __init__(self, job: Job) -> None:
        self.phases: list[PhaseReport] = []
        self.metrics: list[MetricsReport] = []
        self.is_connected = asyncio.Event()
        self.is_training = asyncio.Event()
        options = TrainingOptions(
            state_folder=job.state_folder, stop_grace_s=10, run_limit_s=PATIENCE_S, stderr_lines=20
        )
        self.training = TrainingProcess(job=job, options=options, on_report=self._take)

    def _take(self, report: PhaseReport | MetricsReport) -> None:
        self.is_connected.set()
        if isinstance(report, MetricsReport):
            self.metrics.append(report)
            return
        self.phases.append(report)
        if report.phase is Phase.TRAINING:
            self.is_training.set()

    async def run(self) -> EndedReport:
        async with asyncio.timeout(PATIENCE_S):
            return await self.training.run()


async def test_a_run_over_the_line_is_trained_and_reported(serve_fl: ServeFl, make_job: MakeJob) -> None:
    server_ip = await serve_fl("line", "r1", SECRET.hex(), "2")
    trial = Trial(make_job(server_ip=server_ip))
    ended = await trial.run()
    assert ended.outcome is Outcome.FINISHED, ended
    assert {report.run_id for report in trial.phases} >= {"r1"}
    assert [(report.round, report.values["stage"]) for report in trial.metrics] == [
        (1, "train"),
        (1, "evaluate"),
        (2, "train"),
        (2, "evaluate"),
    ]
    assert trial.metrics[1].values["partition"] == 3
    assert trial.metrics[1].values["batch"] == 32


@pytest.mark.long
async def test_state_is_kept_between_rounds_and_runs(serve_fl: ServeFl, make_job: MakeJob) -> None:
    counts = []
    for run_id in ("r1", "r2"):
        server_ip = await serve_fl("line", run_id, SECRET.hex(), "2")
        trial = Trial(make_job(server_ip=server_ip, run_id=run_id))
        assert (await trial.run()).outcome is Outcome.FINISHED
        counts += [report.values["n"] for report in trial.metrics if report.values["stage"] == "train"]
    assert counts == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "app", ["AddOne", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("an_object", "client_fn", "make_app"))]
)
async def test_classic_grpc_trains_whatever_kind_of_app(serve_fl: ServeFl, make_job: MakeJob, app: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    await serve_fl("grpc", address, "1")
    trial = Trial(make_job(app=f"fl_apps:{app}", server_ip=address, token=None, transport=None))
    ended = await trial.run()
    if app == "make_app":  # made for message strategies: a classic server's questions are none of its own
        assert ended.outcome is Outcome.FAILED
        assert "parameters" in (ended.reason or "") or "registered" in (ended.reason or ""), ended
        return
    assert ended.outcome is Outcome.FINISHED, ended
    train = next(report for report in trial.metrics if report.values["stage"] == "train")
    assert train.values["loss"] == 0.5
    assert {report.run_id for report in trial.phases} <= {None, "r1"}, "the run that it was started as"
    assert float(train.values["bytes_in"]) > 0, "the parameters that came"
    assert float(train.values["bytes_out"]) > 0, "and those that went"


@pytest.mark.parametrize(
    "transport", ["line", *(pytest.param(each, marks=pytest.mark.long) for each in ("grpc", None))]
)
async def test_a_server_that_never_answers_is_a_failure_after_the_join_limit(
    make_job: MakeJob, transport: str | None
) -> None:
    job = make_job(app="fl_apps:AddOne", server_ip=f"127.0.0.1:{free_port()}", join_s=1.5, transport=transport)
    ended = await Trial(job).run()
    assert ended.outcome is Outcome.FAILED
    assert job.start.server_ip in (ended.reason or ""), ended


@pytest.mark.long
async def test_a_server_that_accepts_and_sends_nothing_is_a_failure_too(make_job: MakeJob) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        server_ip = f"127.0.0.1:{mute.getsockname()[1]}"
        ended = await Trial(make_job(server_ip=server_ip, transport=None, join_s=2)).run()
    assert ended.outcome is Outcome.FAILED


@pytest.mark.long
async def test_a_classic_server_that_is_not_up_yet_is_waited_for(serve_fl: ServeFl, make_job: MakeJob) -> None:
    address = f"127.0.0.1:{free_port()}"
    job = make_job(app="fl_apps:AddOne", server_ip=address, transport="grpc", token=None)
    trial = Trial(job)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(trial.run(), name="trial")
        await trial.is_connected.wait()
        await serve_fl("grpc", address, "1")
    assert running.result().outcome is Outcome.FINISHED


@pytest.mark.long
@pytest.mark.parametrize(
    ("app", "reason"),
    [
        ("fl_apps", "expected MODULE:ATTRIBUTE"),
        ("no_such_module:app", "no module named 'no_such_module'"),
        ("fl_apps:missing", "has no 'missing'"),
        ("fl_apps:not_an_app", "it is int, expected a flwr ClientApp"),
        ("broken_app:app", "importing it raised SyntaxError"),
        ("fl_apps:registration", "started without what makes clients of models"),
    ],
)
async def test_an_app_that_cannot_be_loaded_is_a_failure_with_a_reason(
    make_job: MakeJob, tmp_path: Path, app: str, reason: str
) -> None:
    (tmp_path / "broken_app.py").write_text("def app(:\n")
    job = make_job(app=app)
    job = job.model_copy(update={"import_paths": (*job.import_paths, str(tmp_path))})
    ended = await Trial(job).run()
    assert ended.outcome is Outcome.FAILED
    assert reason in (ended.reason or "")


@pytest.mark.long
async def test_code_that_raises_is_a_failure_with_its_text(serve_fl: ServeFl, make_job: MakeJob) -> None:
    server_ip = await serve_fl("line", "r1", SECRET.hex(), "1")
    ended = await Trial(make_job(app="fl_apps:raising", server_ip=server_ip)).run()
    assert ended.outcome is Outcome.FAILED
    assert "ValueError: boom in training" in (ended.reason or "")


async def test_an_exception_is_reported_with_its_traceback_and_all_output_is_kept(
    serve_fl: ServeFl, make_job: MakeJob
) -> None:
    server_ip = await serve_fl("line", "r1", SECRET.hex(), "1")
    job = make_job(app="fl_apps:shouting", server_ip=server_ip)
    ended = await Trial(job).run()
    assert ended.outcome is Outcome.FAILED
    said, *traceback = (ended.reason or "").splitlines()
    assert said.startswith("RuntimeError: beginning ")
    assert said.endswith(" end")
    assert "raise RuntimeError" in traceback[-1]
    (output,) = find_outputs(job.state_folder / OUTPUT_FOLDER)
    assert output.stem == "r1-1"
    kept = b"".join(read_output(output))
    assert b"a print of the app\n" in kept
    assert b"an error of the app\n" in kept
    assert kept.count(b"x" * 200_000) >= 1


@pytest.mark.parametrize("app", ["measuring", pytest.param("measuring_client", marks=pytest.mark.long)])
async def test_training_goes_on_whatever_metrics_an_app_returns(serve_fl: ServeFl, make_job: MakeJob, app: str) -> None:
    server_ip = await serve_fl("line", "r1", SECRET.hex(), "2")
    job = make_job(app=f"fl_apps:{app}", server_ip=server_ip)
    trial = Trial(job)
    ended = await trial.run()
    assert ended.outcome is Outcome.FINISHED, ended
    trained = [report for report in trial.metrics if report.values["stage"] == "train"]
    assert [report.round for report in trained] == [1, 2]
    assert all(len(report.values) == MAX_METRICS for report in trained)
    assert all(report.values["compute_s"] is not None for report in trained)
    (output,) = find_outputs(job.state_folder / OUTPUT_FOLDER)
    warnings = [line for line in read_output(output) if line.startswith(b"WARNING") and b"cut to what" in line]
    assert len(warnings) == 1
    assert str(MAX_METRICS - 8).encode() in warnings[0]


async def test_code_that_crashes_is_a_failure_with_the_signal_and_the_last_lines(
    serve_fl: ServeFl, make_job: MakeJob
) -> None:
    server_ip = await serve_fl("line", "r1", SECRET.hex(), "1")
    ended = await Trial(make_job(app="fl_apps:dying", server_ip=server_ip)).run()
    assert ended.outcome is Outcome.FAILED
    assert "SIGSEGV" in (ended.reason or "")
    assert "segfault ahead" in (ended.reason or "")


async def test_a_wrong_token_is_a_rejection(serve_fl: ServeFl, make_job: MakeJob) -> None:
    server_ip = await serve_fl("line", "r1", SECRET.hex(), "1")
    ended = await Trial(make_job(server_ip=server_ip, token="0" * 64)).run()
    assert ended.outcome is None
    assert "token" in (ended.reason or "")


async def test_an_open_server_gives_a_local_start_its_run(serve_fl: ServeFl, make_job: MakeJob) -> None:
    server_ip = await serve_fl("line", "by-hand", "open", "1")
    trial = Trial(make_job(server_ip=server_ip, run_id="local-1", transport=None, token=None))
    assert (await trial.run()).outcome is Outcome.FINISHED
    assert trial.phases[-1].run_id == "by-hand"


async def test_a_stop_in_the_middle_of_training_ends_the_process(serve_fl: ServeFl, make_job: MakeJob) -> None:
    server_ip = await serve_fl("line", "r1", SECRET.hex(), "1")
    trial = Trial(make_job(app="fl_apps:endless", server_ip=server_ip))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(trial.run(), name="trial")
        await trial.is_training.wait()
        trial.training.stop("by hand")
    assert running.result().outcome is Outcome.STOPPED


STUCK = """
import os, re
os.fork()
os.write(2, b"%d\\n" % os.getpid())
re.match("(a+)+$", "a" * 60 + "b")
"""


def test_a_training_process_dies_with_its_daemon_even_while_it_holds_the_gil(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    read, write = os.pipe()
    command = (sys.executable, "-m", MODULE, "--lifeline", str(read))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(read,), start_new_session=True
    ) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        os.close(read)
        child.stdin.write(to_line(job_in(tmp_path)))
        child.stdin.flush()
        pids = [int(child.stderr.readline()) for _ in range(2)]
        assert child.pid in pids
        os.close(write)
        assert child.wait(PATIENCE_S) == -signal.SIGKILL
        assert child.stderr.read() == b""  # its end has come: nobody holds the other side any more


def job_in(folder: Path) -> Job:
    return Job(
        app="stuck:app",
        import_paths=(str(folder),),
        identity=Identity(task_id="t", client_mac="02:00:00:00:00:01", client_name="", instance="i"),
        start=RunStart(run_id="r", attempt=1, launch=1, server_ip="127.0.0.1:1"),
        state_folder=folder,
        join_s=1,
        rejoin_s=1,
    )


def test_importing_the_module_imports_no_flower() -> None:
    program = "import sys, fedops_mqtt.training.process; print({'flwr', 'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
