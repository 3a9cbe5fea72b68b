"""The FL server's engine: one run, from the newest global model or its own checkpoint to the next stored version.

The strategy has the thread that calls `run`; the line and the bus have threads of their own and outlive its waits.
"""

import logging
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Any

from flwr.serverapp import ServerApp

from fedops_mqtt import __version__
from fedops_mqtt.aggregation.checkpoint import CheckpointStore, CheckpointWriter, StartingPoint, find_starting_point
from fedops_mqtt.aggregation.errors import ServerError
from fedops_mqtt.aggregation.pipe_publisher import PipeStatusPublisher, make_publisher
from fedops_mqtt.aggregation.rounds import Evaluate, RoundHooks, RoundReporter, Rounds, RoundStatus
from fedops_mqtt.aggregation.run_settings import RunPlan, check_of, make_compression, make_limits
from fedops_mqtt.aggregation.run_training import RunTraining
from fedops_mqtt.aggregation.status_publisher import BusCallbacks, ServerSnapshot, ServerStatusPublisher, client_of
from fedops_mqtt.aggregation.stop_control import EndNowError, EndRequest, StopControl
from fedops_mqtt.aggregation.strategy import Config, own_minimum
from fedops_mqtt.aggregation.strategy_state import AnyStrategy, check_strategy
from fedops_mqtt.bus import new_instance
from fedops_mqtt.bus.address import parse_broker_urls
from fedops_mqtt.line.errors import LineConfigError
from fedops_mqtt.line.grid import RunEndedError
from fedops_mqtt.line.members import LineMember, MemberChange
from fedops_mqtt.line.server import LineServer, LineTls
from fedops_mqtt.protocol import LastRun, ReasonCode, RunOutcome, ServerCondition, describe_error
from fedops_mqtt.runtime.machine import fill_in, host_name
from fedops_mqtt.runtime.settings import ServerSettings
from fedops_mqtt.runtime.wandb_log import shown_on_wandb
from fedops_mqtt.store.errors import StoreError
from fedops_mqtt.store.tensor_file import Arrays
from fedops_mqtt.store.versions import ModelStore, StoredModel

_log = logging.getLogger(__name__)

_FINAL_STATUS_S = 60.0
"""The final status waits this long for a broker that was there before: one that restarts is back sooner."""
_FINAL_STATUS_STOPPED_S = 5.0
"""Whoever stopped the server waits for it, and may have stopped the broker too."""

_CONDITIONS = {
    RunOutcome.COMPLETED: ServerCondition.FINISHED,
    RunOutcome.FAILED: ServerCondition.FAILED,
    RunOutcome.STOPPED: ServerCondition.STOPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended; `model_path` is where its global model was saved, None where no round was done."""

    outcome: RunOutcome
    reason: str
    run_id: str
    round: int
    metrics: Mapping[str, float]
    gl_model: int
    model_path: str | None


Attach = Callable[[ServerStatusPublisher | PipeStatusPublisher], AbstractContextManager[None]]


class ServerRun:
    """One run of one FL server; call `run` once.

    Args:
        strategy: None where `server_app` brings its own.
        initial: the program's own model.
        evaluate: of the global model on the server's data.
        status: FedOps' view of the server, kept up to date.
        attach: lasts as long as the server publishes, and gets what it publishes through.
    """

    def __init__(
        self,
        *,
        plan: RunPlan,
        settings: ServerSettings,
        strategy: AnyStrategy | None,
        server_app: ServerApp | None,
        initial: Arrays | None,
        evaluate: Evaluate | None,
        train_config: Config,
        app_config: Config | None,
        model_name: str,
        status: RoundStatus,
        attach: Attach,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._strategy = strategy
        self._server_app = server_app
        self._initial = initial
        self._evaluate = evaluate
        self._train_config = train_config
        self._app_config = app_config
        self._status = status
        self._attach = attach
        self._store = ModelStore(settings.store, task_id=plan.task_id, model_name=model_name)
        self._checkpoints = CheckpointStore(settings.store, task_id=plan.task_id)
        self._writer = CheckpointWriter(self._checkpoints)
        self._stop_control = StopControl(grace_s=settings.stop_grace_s, reason_file=settings.stop_reason_file)
        self._line: LineServer | None = None

    @property
    def address(self) -> str | None:
        """`host:port` of the line, once it listens."""
        return self._line.address if self._line is not None else None

    def run(self) -> RunResult:
        """Do the run, to whatever end, and return how it ended.

        Raises:
            BrokerUrlError: the broker's URL cannot be used.
        """
        callbacks = BusCallbacks(on_client_ended=self._drop_client, on_replaced=self._end_replaced)
        publisher = make_publisher(self._settings, self._first_snapshot(), callbacks)
        shown = shown_on_wandb(self._settings, self._plan.run_id, self._plan.made_with)
        with self._stop_control.on_signals(), publisher, self._attach(publisher), shown as show:
            self._publisher = publisher
            self._reporter = RoundReporter(
                plan=self._plan, status=self._status, sink=publisher, show=show, count_bytes=self._count_bytes
            )
            return self._run()

    def stop(self, reason: str) -> None:
        """End the run as stopped; `run` returns soon. May be called from any thread."""
        self._stop_control.request(EndRequest(outcome=RunOutcome.STOPPED, reason=reason))

    def _run(self) -> RunResult:
        nothing = Rounds(num_rounds=self._plan.num_rounds)
        try:
            starting_point = self._begin()
        except (ServerError, StoreError, OSError) as error:
            problem = f"model store: {error}" if isinstance(error, OSError) else str(error)
            _log.error("run cannot begin", extra={"problem": problem})
            return self._publish_end(RunOutcome.FAILED, problem, nothing, None)
        rounds = self._rounds(starting_point)
        training = self._training = RunTraining(
            plan=self._plan,
            starting_point=starting_point,
            rounds=rounds,
            strategy=self._strategy,
            server_app=self._server_app,
            initial=self._initial,
            train_config=self._train_config,
            app_config=self._app_config,
            settings=self._settings,
        )
        try:
            line = self._line = self._open_line()
        except (LineConfigError, OSError) as error:
            _log.error("line cannot be opened", extra={"problem": str(error)})
            return self._publish_end(RunOutcome.FAILED, f"line: {error}", rounds, starting_point.saved)
        with line:
            self._publisher.update(status=ServerCondition.READY, server_ip=line.address)
            _log.info("server is ready", extra={"run_id": self._plan.run_id, "server_ip": line.address})
            outcome, reason, code = self._train(line, starting_point, training)
            return self._end(line, outcome, reason, code, training, starting_point)

    def _begin(self) -> StartingPoint:
        if self._strategy is not None:
            check_strategy(self._strategy)
        starting_point = find_starting_point(
            self._plan,
            store=self._store,
            checkpoints=self._checkpoints,
            initial=self._initial,
            accepts_nonfinite=check_of(self._strategy, self._settings).nonfinite,
        )
        if self._plan.is_resumable:
            previous = [starting_point.previous.run_id] if starting_point.previous is not None else []
            self._checkpoints.remove_others(self._plan.run_id, *previous)
        self._status.last_gl_model_v, self._status.gl_model_v = starting_point.last_gl_model, starting_point.gl_model
        self._publisher.update(gl_model=starting_point.gl_model, round=starting_point.done)
        return starting_point

    def _first_snapshot(self) -> ServerSnapshot:
        return ServerSnapshot(
            task_id=self._plan.task_id,
            run_id=self._plan.run_id,
            launch=self._plan.launch,
            instance=new_instance(),
            heartbeat_s=self._settings.heartbeat_s,
            agent={"fedops-mqtt": __version__, "flwr": version_of("flwr"), "python": platform.python_version()},
            num_rounds=self._plan.num_rounds,
        )

    def _open_line(self) -> LineServer:
        settings, token = self._settings, self._settings.join_token
        tls = None
        if settings.line_cert_file and settings.line_key_file:
            tls = LineTls(cert_file=settings.line_cert_file, key_file=settings.line_key_file)
        return LineServer(
            run_id=self._plan.run_id,
            launch=self._plan.launch,
            listen=settings.listen,
            advertise=self._advertised(),
            run_secret=self._plan.run_secret,
            join_token=token.get_secret_value() if token else None,
            join=self._plan.join,
            limits=make_limits(settings),
            tls=tls,
            compression=make_compression(settings),
            min_clients=self._plan.min_clients or own_minimum(self._strategy),
            max_clients=self._plan.min_clients
            if settings.report_fd is not None
            else None,  # a simulation has no others
            app=settings.app_file.read_bytes() if settings.app_file else None,
            on_member=self._publish_member,
            on_round=self._reporter.begin if self._server_app is not None else None,
        )

    def _advertised(self) -> str | None:
        if self._settings.advertise is None:
            return None
        broker = parse_broker_urls(self._settings.broker)[0]
        return fill_in(self._settings.advertise, host_name(), (broker.host, broker.port))

    def _rounds(self, starting_point: StartingPoint) -> Rounds:
        checkpoint, done = starting_point.checkpoint, starting_point.done
        hooks = RoundHooks(
            evaluate=self._evaluate,
            on_start=self._reporter.begin,
            on_report=self._reporter.report,
            save=self._save_checkpoint,
        )
        return Rounds(
            num_rounds=self._plan.num_rounds,
            done=done,
            arrays=starting_point.arrays if done else None,
            metrics=dict(checkpoint.metrics) if checkpoint else {},
            hooks=hooks,
        )

    def _train(
        self, line: LineServer, starting_point: StartingPoint, training: RunTraining
    ) -> tuple[RunOutcome, str, ReasonCode | None]:
        """Run foreign code: the strategy, the ServerApp, the evaluation; whatever it raises fails the run."""
        saved = starting_point.saved
        if saved is not None and saved.outcome == RunOutcome.STOPPED:
            return RunOutcome.STOPPED, f"an earlier launch was stopped after round {saved.round}", None
        if saved is not None or (training.rounds.num_left == 0 and self._server_app is None):
            return RunOutcome.COMPLETED, "all rounds were done by an earlier launch", None
        try:
            with self._stop_control.foreign_code(line):
                training.run(line.grid)
        except RunEndedError as end:
            return end.outcome, end.reason, end.reason_code
        except EndNowError:
            requested = self._stop_control.requested
            return RunOutcome.STOPPED, requested.reason if requested else "interrupted", None
        except (ServerError, StoreError) as error:  # the strategy is unfit for the model, or the model cannot be used
            _log.error("run failed", extra={"problem": str(error)})
            return RunOutcome.FAILED, str(error), None
        except Exception as error:
            _log.exception("run failed")
            return RunOutcome.FAILED, describe_error(error), None
        return *training.decision(), None

    def _end(
        self,
        line: LineServer,
        outcome: RunOutcome,
        reason: str,
        code: ReasonCode | None,
        training: RunTraining,
        starting_point: StartingPoint,
    ) -> RunResult:
        """Save the last whole round's model, inform the clients, publish the final status, forget the checkpoint."""
        self._writer.close()
        rounds, saved = training.rounds, starting_point.saved
        requested = self._stop_control.requested
        if requested is not None and requested.is_replaced:
            line.abandon()
            return self._result(RunOutcome.STOPPED, requested.reason, rounds, None)
        if saved is None:
            rounds.arrays = training.model()
            saved, outcome, reason = save_model(
                self._store,
                rounds,
                run_id=self._plan.run_id,
                outcome=outcome,
                reason=reason,
                made_with=self._plan.made_with,
            )
        uninformed = line.close(outcome, reason, linger_s=self._settings.linger_s)
        if uninformed:
            _log.warning("clients could not be informed of the end", extra={"clients": uninformed})
        result = self._publish_end(outcome, reason, rounds, saved, code)
        if saved is not None:
            self._forget(training, starting_point, is_version=saved.version > 0)
        return result

    def _forget(self, training: RunTraining, starting_point: StartingPoint, *, is_version: bool) -> None:
        """Remove the run's checkpoint, but for a strategy's state that the next run is to begin with."""
        last = training.last
        try:
            if not is_version or last is None or not last.strategy:
                self._checkpoints.remove(self._plan.run_id)
            elif not self._plan.is_resumable:
                self._checkpoints.save(last)
            if is_version and starting_point.previous is not None:
                self._checkpoints.remove(starting_point.previous.run_id)
        except (ServerError, StoreError, OSError) as error:  # the model itself is saved
            _log.warning("strategy's state was not kept for the next run", extra={"problem": str(error)})

    def _publish_end(
        self,
        outcome: RunOutcome,
        reason: str,
        rounds: Rounds,
        saved: StoredModel | None,
        code: ReasonCode | None = None,
    ) -> RunResult:
        result = self._result(outcome, reason, rounds, saved)
        _log.info("run ended", extra={"outcome": str(outcome), "reason": reason, "model_path": result.model_path})
        for mac, member in self._members().items():
            self._publisher.update_client(mac, client_of(member))
        is_published = self._publisher.finish(
            _FINAL_STATUS_STOPPED_S if outcome is RunOutcome.STOPPED else _FINAL_STATUS_S,
            status=_CONDITIONS[outcome],
            reason=reason,
            reason_code=code,
            round=rounds.done,
            metrics=result.metrics,
            gl_model=result.gl_model,
            model_path=result.model_path,
        )
        if not is_published:
            _log.warning("could not publish how the run ended")
        return result

    def _result(self, outcome: RunOutcome, reason: str, rounds: Rounds, saved: StoredModel | None) -> RunResult:
        self._status.gl_model_v = (saved.version if saved else 0) or self._status.last_gl_model_v
        return RunResult(
            outcome=outcome,
            reason=reason,
            run_id=self._plan.run_id,
            round=rounds.done,
            metrics=dict(saved.metrics if saved and not rounds.metrics else rounds.metrics),
            gl_model=self._status.gl_model_v,
            model_path=saved.path if saved else None,
        )

    def _save_checkpoint(self, round_: int, arrays: Arrays, metrics: Mapping[str, float]) -> None:
        checkpoint = self._training.checkpoint(round_, arrays, metrics)
        if self._plan.is_resumable:
            self._writer.save(checkpoint)

    def _count_bytes(self) -> tuple[int, int]:
        return (self._line.bytes_in, self._line.bytes_out) if self._line is not None else (0, 0)

    def _members(self) -> Mapping[str, LineMember]:
        return self._line.members if self._line is not None else {}

    def _publish_member(self, change: MemberChange) -> None:
        if change.member.has_joined:
            self._publisher.update_client(change.member.mac, client_of(change.member))

    def _drop_client(self, client_mac: str, last: LastRun) -> None:
        """A client published that its training has ended: its round goes on at once."""
        member = self._members().get(client_mac)
        if self._line is None or member is None or member.outcome is not None:
            return
        if member.attempt == last.attempt:
            reason = last.reason or f"{last.outcome}, as its daemon reported"
            self._line.drop(client_mac, last.outcome, reason, last.reason_code)

    def _end_replaced(self, reason: str) -> None:
        _log.warning("another server has this run", extra={"reason": reason})
        self._stop_control.request(EndRequest(outcome=RunOutcome.STOPPED, reason=reason, is_replaced=True))


def save_model(
    store: ModelStore,
    rounds: Rounds,
    *,
    run_id: str,
    outcome: RunOutcome,
    reason: str,
    made_with: Mapping[str, Any] | None = None,
) -> tuple[StoredModel | None, RunOutcome, str]:
    """Store the model of the last whole round; return it, and how the run ended with that.

    A model that is not finite, or of a failed run, never becomes a version: the next run would begin from it.
    """
    if rounds.arrays is None:
        return None, outcome, reason
    if problem := rounds.nonfinite_in(rounds.arrays):
        failure = f"the global model of round {rounds.done} is not finite: {problem}"
        outcome, reason = RunOutcome.FAILED, reason if outcome is RunOutcome.FAILED else failure
    facts: dict[str, Any] = {"run_id": run_id, "round": rounds.done, "metrics": rounds.metrics}
    facts["made_with"] = made_with
    try:
        if outcome is RunOutcome.FAILED:
            saved = store.save_failed(rounds.arrays, **facts)
        else:
            saved = store.save(rounds.arrays, outcome=outcome, **facts)
    except (ServerError, StoreError, OSError) as error:
        _log.error("global model was not saved", extra={"problem": str(error)})
        failure = f"global model was not saved: {error}"
        return None, RunOutcome.FAILED, f"{reason}; {failure}" if outcome is RunOutcome.FAILED else failure
    return saved, outcome, reason
