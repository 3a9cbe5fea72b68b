"""One training: the app is loaded, the server is joined over the line or classic gRPC, each round is reported."""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from fedops_mqtt.core.client_state import PhaseReport
from fedops_mqtt.line.client_session import RunEnd
from fedops_mqtt.line.connection import Answers, probe
from fedops_mqtt.line.errors import LineConfigError
from fedops_mqtt.line.runner import Joined, LineRunner, MessageAnswered, Progress, make_context
from fedops_mqtt.protocol import MetricsCutter, MetricsKind, Outcome, Phase, ReasonCode, Transport, clip
from fedops_mqtt.runtime.key_values import Plain
from fedops_mqtt.runtime.task_config import Scalar
from fedops_mqtt.runtime.wandb_log import WandbLog, start_wandb
from fedops_mqtt.training.app_loading import (
    AppError,
    Keeping,
    KeptState,
    MakeRegister,
    load_app,
    make_node_config,
    run_config_of,
)
from fedops_mqtt.training.classic_grpc import ClassicRunner
from fedops_mqtt.training.client_backend import publishing_through
from fedops_mqtt.training.numpy_clients import AnyServerApp
from fedops_mqtt.training.pipe import EndedReport, Job, MetricsReport, Reporter, failed, leave_soon

_NAMES = {
    Phase.STARTING: "wait_s",
    Phase.JOINING: "wait_s",
    Phase.WAITING: "wait_s",
    Phase.DOWNLOADING: "download_s",
    Phase.TRAINING: "compute_s",
    Phase.EVALUATING: "compute_s",
    Phase.UPLOADING: "upload_s",
}


class PhaseClock:
    """Adds up the time in each phase, and holds a message's report until its upload has ended. For any thread."""

    def __init__(self, publish: Callable[[MetricsReport], None]) -> None:
        self._publish = publish
        self._lock = threading.Lock()
        self._name: str | None = None
        self._since = time.monotonic()
        self._spent: dict[str, float] = {}
        self._held: MetricsReport | None = None

    def enter(self, phase: Phase) -> None:
        """Begin a phase; a report that is held is published once its upload has ended."""
        with self._lock:
            self._stop()
            self._name = _NAMES[phase]
        if phase not in (Phase.UPLOADING, Phase.TRAINING, Phase.EVALUATING):
            self.flush()

    def hold(self, report: MetricsReport) -> None:
        """Keep the numbers of a message that was computed."""
        self.flush()
        self._held = report

    def flush(self) -> None:
        """Report what is held back."""
        with self._lock:
            held, self._held = self._held, None
            if held is None:
                return
            self._stop()
            split = {name: round(self._spent.get(name, 0.0), 6) for name in dict.fromkeys(_NAMES.values())}
            self._spent.clear()
        self._publish(held.model_copy(update={"values": {**held.values, **split}}))

    def _stop(self) -> None:
        now = time.monotonic()
        if self._name is not None:
            self._spent[self._name] = self._spent.get(self._name, 0.0) + now - self._since
        self._since = now


class ShownRounds:
    """The rounds of one training, in order."""

    def __init__(self) -> None:
        self._round: int | None = None
        self._began_at = 0.0
        self._before = (0, 0)
        self._bytes_shown = (0, 0)

    def show(
        self, answered: MessageAnswered, *, began_at: float, now: float, bytes_so_far: tuple[int, int]
    ) -> dict[str, float]:
        """Return the round as it stands after one more answer.

        Args:
            answered: what was answered; its upload has ended.
            began_at: when the app began to compute it, monotonic seconds; as `now` is.
            now: when this is shown.
            bytes_so_far: received and sent by the training as a whole.
        """
        round_ = answered.round or 0
        if round_ != self._round:
            self._round, self._began_at, self._before = round_, began_at, self._bytes_shown
        self._bytes_shown = bytes_so_far
        bytes_in, bytes_out = (after - before for after, before in zip(bytes_so_far, self._before, strict=True))
        times = {f"{answered.kind}_seconds": answered.seconds, "round_seconds": now - self._began_at}
        return {**answered.metrics, **times, "bytes_in": bytes_in, "bytes_out": bytes_out, "round": round_}


logger = logging.getLogger(__name__)

_WANDB_CLOSE_S = 5.0
_PROBE_S = 1.0
"""A server that is there answers sooner; one that is busy is asked again."""
_PROBE_RETRY_S = 0.2
_NUM_OWN_METRICS = 8
"""Added to what the app measured: stage, seconds, the four parts of `PhaseClock`, bytes_in, bytes_out."""


class TrainingRun:
    """One job from its first line to its last report."""

    def __init__(self, *, job: Job, reporter: Reporter, make_register: MakeRegister) -> None:
        self._job = job
        self._make_register = make_register
        self._reporter = reporter
        self._runner: LineRunner | ClassicRunner | None = None
        self._lock = threading.Lock()
        self._server_ip, self._launch = job.start.server_ip, job.start.launch
        self._stop_reason: str | None = None
        self._stop_code: ReasonCode | None = None
        self._bytes = (0, 0)
        self._app: Keeping | None = None
        self._run_id: str | None = None
        self._run_config: dict[str, Plain] = {}
        self._wandb = _wandb_of(job)
        self._shown = ShownRounds()
        self._last: MessageAnswered | None = None
        self._last_began = 0.0
        self._began = time.monotonic()
        self._is_registered = False
        self._clock = PhaseClock(self._report_uploaded)
        self._cutter = MetricsCutter(logger.warning)

    def run(self) -> EndedReport:
        """Train until the run has ended for this client and return how it ended."""
        self._reporter.phase(PhaseReport(phase=Phase.JOINING))
        try:
            app = load_app(self._job, self._make_register)
            self._run_config = run_config_of(self._job)
            self._is_registered = isinstance(app, AnyServerApp) and app.is_registered
        except AppError as error:
            return failed(error.reason)
        try:
            runner = self._take_runner()
        except (LineConfigError, OSError) as error:  # an address or a CA file that cannot be used
            return failed(str(error))
        kept = KeptState(self._job.state_folder / "context.bin")
        self._app = Keeping(app, kept)
        with publishing_through(self):
            return self._report_of(runner.run(_as_app(self._app), partial(self._context, kept.load())))

    def close(self) -> int:
        """Finish what runs beside the training; returns the exit status."""
        if self._wandb is not None and not self._wandb.close(_WANDB_CLOSE_S):
            logger.warning("wandb did not finish in time")
        return 0

    def redirect(self, server_ip: str, launch: int) -> None:
        """The server is somewhere else now."""
        with self._lock:
            self._server_ip, self._launch = server_ip, launch
            if self._runner is not None:
                self._runner.redirect(server_ip, launch)

    def stop(self, reason: str, code: ReasonCode | None = None) -> None:
        """End at the next possible moment."""
        with self._lock:
            self._stop_reason, self._stop_code = reason, code
            if self._runner is not None:
                self._runner.stop(reason, code)

    @property
    def gl_model(self) -> int:
        """Number of the global model that the start gave."""
        return self._job.start.gl_model

    @property
    def server_ip(self) -> str:
        """`host:port` of the FL server."""
        return self._server_ip

    def publish_metrics(self, kind: MetricsKind, round_: int, values: dict[str, Scalar]) -> None:
        """Publish metrics that the app passes to FedOps' `client_api`."""
        self._reporter.metrics(MetricsReport(kind=kind, round=round_, values=self._cutter.cut(values)))

    def end_training(self, outcome: Outcome, reason: str | None) -> None:
        """The app itself reports how it ended."""
        self._reporter.ended(EndedReport(outcome=outcome, reason=reason))
        leave_soon(self.close)

    def leave(self) -> None:
        """The app wants the client to leave; a training process can only end itself."""
        self.end_training(Outcome.STOPPED, "its own program asked it to leave")

    def _take_runner(self) -> LineRunner | ClassicRunner:
        job, started = self._job, time.monotonic()
        transport = job.start.transport or self._find_transport()
        join_s = max(1.0, job.join_s - (time.monotonic() - started))
        with self._lock:
            if transport is Transport.GRPC:
                self._runner = ClassicRunner(
                    run_id=job.start.run_id,
                    client_mac=job.identity.client_mac,
                    server_ip=self._server_ip,
                    ca_file=job.ca_file,
                    join_s=join_s,
                    rejoin_s=job.rejoin_s,
                    on_progress=self._progress,
                    on_answered=self._answered,
                )
            else:
                self._runner = LineRunner(
                    server_ip=self._server_ip,
                    client_mac=job.identity.client_mac,
                    instance=job.identity.instance,
                    attempt=job.start.attempt,
                    token=job.start.token,
                    run_id=job.start.run_id if job.start.transport else None,
                    launch=self._launch,
                    ca_file=job.ca_file,
                    join_s=join_s,
                    rejoin_s=job.rejoin_s,
                    on_progress=self._progress,
                    on_answered=self._answered,
                    on_end=self._end,
                )
            if self._stop_reason is not None:
                self._runner.stop(self._stop_reason, self._stop_code)
            return self._runner

    def _find_transport(self) -> Transport:
        """Wait within the join limit until a server answers at the address, and detect its transport."""
        deadline = time.monotonic() + self._job.join_s
        while self._stop_reason is None and time.monotonic() < deadline:
            answers = probe(self._server_ip, ca_file=self._job.ca_file, timeout_s=_PROBE_S)
            if answers is not Answers.NOBODY:
                return Transport(answers.value)
            threading.Event().wait(_PROBE_RETRY_S)
        return Transport.LINE

    def _context(self, state: RecordDict, joined: Joined) -> Context:
        self._reporter.phase(PhaseReport(phase=Phase.WAITING, run_id=joined.run_id))
        context = make_context(
            joined,
            node_config=make_node_config(self._job),
            run_config=self._run_config,
        )
        context.state = state
        self._run_id = joined.run_id
        return context

    def _progress(self, progress: Progress) -> None:
        self._bytes = (progress.bytes_in, progress.bytes_out)
        self._clock.enter(progress.phase)
        self._reporter.phase(PhaseReport(phase=progress.phase, round=progress.round or 0, run_id=self._run_id))

    def _answered(self, answered: MessageAnswered) -> None:
        measured = self._cutter.cut(answered.metrics, num_more=_NUM_OWN_METRICS)
        values = {**measured, "stage": clip(answered.kind), "seconds": round(answered.seconds, 6)}
        self._clock.hold(MetricsReport(kind=MetricsKind.ROUND, round=answered.round or 0, values=values))
        self._last, self._last_began = answered, time.monotonic() - answered.seconds

    def _report_uploaded(self, report: MetricsReport) -> None:
        """The last answer is uploaded: its numbers hold all the bytes that it took."""
        bytes_in, bytes_out = self._bytes
        values = {**report.values, "bytes_in": bytes_in, "bytes_out": bytes_out}
        self._reporter.metrics(report.model_copy(update={"values": values}))
        if self._wandb is not None and self._last is not None:
            shown = self._shown.show(
                self._last, began_at=self._last_began, now=time.monotonic(), bytes_so_far=self._bytes
            )
            self._wandb.log(shown, step=report.round)

    def _end(self, end: RunEnd) -> None:
        """The run has ended for this client, perhaps while the app still computes: report now, leave soon."""
        self._reporter.ended(self._report_of(end))
        leave_soon(self.close)

    def _report_of(self, end: RunEnd) -> EndedReport:
        """An app that raised has failed, also where the server ended the run before the app's failure was reported."""
        self._clock.flush()
        failure = self._app.failure if self._app else None
        if failure is None and end.outcome is Outcome.FINISHED and self._is_registered:
            self._report_time()
        if failure is not None:
            return failed(failure)
        outcome = None if end.is_rejected else end.outcome
        return EndedReport(outcome=outcome, reason=end.reason or None, reason_code=end.reason_code)

    def _report_time(self) -> None:
        """Report how long it took, as FedOps does."""
        identity = self._job.identity
        values: dict[str, Scalar] = {
            "fl_task_id": identity.task_id,
            "client_mac": identity.client_mac,
            "client_name": identity.client_name,
            "operation_time": time.monotonic() - self._began,
            "gl_model_v": self.gl_model,
        }
        self.publish_metrics(MetricsKind.TIME_RESULT, 0, values)


def _as_app(keeping: Keeping) -> ClientApp:
    """LineRunner only calls its app; what else a ClientApp can do is for whoever builds one."""
    return keeping  # type: ignore[return-value]


def _wandb_of(job: Job) -> WandbLog | None:
    options = job.wandb
    if options is None:
        return None
    return WandbLog(partial(start_wandb, options.key, options.project, options.name, options.config))
