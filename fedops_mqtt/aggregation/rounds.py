"""The rounds of one run as they happen: evaluated, checkpointed, reported; the same for both families of strategies.

Round numbers are the run's own: a relaunched server goes on counting where the launch before stopped.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedops_mqtt.aggregation.errors import NonFiniteModelError
from fedops_mqtt.aggregation.model_arrays import nonfinite_in
from fedops_mqtt.aggregation.run_settings import RunPlan
from fedops_mqtt.line.reply_check import count_nonfinite
from fedops_mqtt.protocol import MetricsCutter, ServerCondition, ServerMetrics, count_of, numbers_in, utc_now
from fedops_mqtt.runtime.wandb_log import Show
from fedops_mqtt.store.tensor_file import Arrays, check_storable

_log = logging.getLogger(__name__)

_MAX_FAILURES = 5

Evaluate = Callable[[int, Arrays], Mapping[str, Any] | None]
"""`(round, arrays) -> metrics` of the global model on the server's own data; round 0 is before training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One round so far; a later report of the same round has more metrics."""

    round: int
    metrics: Mapping[str, float]
    duration_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundHooks:
    """Who wants to know. `save` is called after each whole round with the new global model."""

    evaluate: Evaluate | None = None
    on_start: Callable[[int], None] = lambda round_: None
    on_report: Callable[[RoundReport], None] = lambda report: None
    save: Callable[[int, Arrays, Mapping[str, float]], None] = lambda round_, arrays, metrics: None


@dataclass(slots=True, kw_only=True)
class Rounds:
    """The rounds after `done`, up to `num_rounds`. `arrays` is the newest model that a whole round gave, if any."""

    num_rounds: int
    done: int = 0
    arrays: Arrays | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """The last round's that has any."""
    hooks: RoundHooks = field(default_factory=RoundHooks)
    num_aggregated: int = 0
    """Rounds of this launch that made a new model."""
    accepts_nonfinite: bool = False
    """A model with NaN or infinities ends no run."""
    failures: list[str] = field(default_factory=list)
    """What clients answered in the place of results of training, each text once; the first few."""
    evaluation_failures: list[str] = field(default_factory=list)
    """The same of evaluation; the run does not depend on it."""
    num_fruitless: int = 0
    """Rounds of this launch that made no new model."""
    _begun: Arrays | None = None
    """Of the first model of this launch, the arrays that hold infinities."""
    _current: int = -1
    _current_metrics: dict[str, float] = field(default_factory=dict)
    _started_at: float = field(default_factory=time.monotonic)
    _duration_s: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_left(self) -> int:
        """Rounds that are still to be done."""
        return max(0, self.num_rounds - self.done)

    @property
    def active_training(self) -> int | None:
        """The round that has begun and not ended; None between rounds."""
        return self._current if self._current > self.done else None

    def restart(self) -> None:
        """Begin again with round 1: what earlier launches did is not continued."""
        self.done, self.arrays, self.metrics, self.num_aggregated, self.num_fruitless = 0, None, {}, 0, 0

    def start(self, round_: int) -> None:
        """A round begins; calling it again changes nothing."""
        with self._lock:
            if round_ == self._current:
                return
            self._enter(round_)
        self.hooks.on_start(round_)

    def add(self, round_: int, metrics: Mapping[str, Any] | None, *, prefix: str = "") -> None:
        """Add clients' metrics of a round, named `prefix` and their name; reported at once if the round has ended."""
        named = {
            name if name.startswith(prefix) else f"{prefix}_{name}": value
            for name, value in numbers_in(metrics).items()
        }
        if round_ == self._current and round_ > self.done:
            self._current_metrics |= named
        elif round_ == self.done and named:
            self.metrics |= named
            self._duration_s = time.monotonic() - self._started_at
            self._report(round_)

    def take_failure(self, reason: str) -> None:
        """A client answered a training with an error."""
        _note(self.failures, reason)

    def take_evaluation_failure(self, reason: str) -> None:
        """A client answered an evaluation with an error."""
        _log.warning("client's evaluation failed", extra={"round": self._current, "reason": reason})
        _note(self.evaluation_failures, reason)

    def aggregated(self, is_new: bool) -> None:
        """The strategy has aggregated a round's training; without any result the model stays as it was."""
        if is_new:
            self.num_aggregated += 1
        else:
            self.num_fruitless += 1
            _log.warning("round gave no new model", extra={"round": self._current})

    def evaluate(self, round_: int, arrays: Arrays) -> dict[str, float]:
        """Return the server's own metrics of this model; none where there is no evaluation.

        It gets copies: an evaluation that works in place must not change what is stored.
        """
        if self.hooks.evaluate is None:
            return {}
        return numbers_in(self.hooks.evaluate(round_, {name: array.copy() for name, array in arrays.items()}))

    def end(self, round_: int, arrays: Arrays, metrics: Mapping[str, Any] | None) -> None:
        """A round has ended (0: the model before training has been evaluated): checkpoint it, report it.

        Raises:
            NonFiniteModelError: the round's model has NaN or new infinities, and that is not accepted.
            UnsupportedArrayError: it could not be stored in the end.
        """
        check_storable(arrays)
        if (problem := self.nonfinite_in(arrays)) and not self.accepts_nonfinite:
            advice = "the model of the round before is kept; accept_nonfinite goes on all the same"
            raise NonFiniteModelError(f"the global model of round {round_}", problem, advice)
        if round_ != self._current:
            self._enter(round_)
        self.metrics = self._current_metrics | numbers_in(metrics)
        self._duration_s = time.monotonic() - self._started_at if round_ else None
        if round_:
            self.done = round_
        if round_ and (self.num_aggregated or self.arrays is not None):
            self.arrays = arrays
            self.hooks.save(round_, arrays, self.metrics)
        self._report(round_)

    def _report(self, round_: int) -> None:
        self.hooks.on_report(RoundReport(round=round_, metrics=dict(self.metrics), duration_s=self._duration_s))

    def nonfinite_in(self, arrays: Arrays) -> str | None:
        """Return which array has NaN, or infinities that the model did not begin with."""
        if self._begun is None:
            first = self.arrays or arrays
            self._begun = {name: array for name, array in first.items() if count_nonfinite(array)}
        return nonfinite_in(arrays, self._begun)

    def _enter(self, round_: int) -> None:
        self._current, self._current_metrics, self._started_at = round_, {}, time.monotonic()


def _note(reasons: list[str], reason: str) -> None:
    if reason not in reasons and len(reasons) < _MAX_FAILURES:
        reasons.append(reason)


class RoundStatus(Protocol):
    """What FedOps' status of a server shows of its rounds; times in seconds since the epoch."""

    round: int
    start_by_round: float
    end_by_round: float
    last_gl_model_v: int
    """Number of the global model that the run began with."""
    gl_model_v: int
    """Of the one that it makes."""


class MetricsSink(Protocol):
    """What publishes for this server."""

    def update(self, *, is_urgent: bool = True, **changes: Any) -> None:
        """Change the status."""

    def publish_metrics(self, metrics: ServerMetrics) -> None:
        """Publish numbers."""


class RoundReporter:
    """Reports one run; `count_bytes` returns what its line has received and sent so far."""

    def __init__(
        self,
        *,
        plan: RunPlan,
        status: RoundStatus,
        sink: MetricsSink,
        show: Show,
        count_bytes: Callable[[], tuple[int, int]],
    ) -> None:
        self._plan = plan
        self._status = status
        self._sink = sink
        self._show = show
        self._count_bytes = count_bytes
        self._bytes_before = (0, 0)
        self._cutter = MetricsCutter(_log.warning)

    def begin(self, round_: int) -> None:
        """A round begins: its time and bytes count from here."""
        round_ = count_of(round_)  # a strategy with rounds of its own may count in numpy's integers, or below 0
        self._status.round, self._status.start_by_round = round_, time.time()
        self._bytes_before = self._count_bytes()
        self._sink.update(status=ServerCondition.RUNNING, round=round_)

    def report(self, report: RoundReport) -> None:
        """Report a round so far."""
        self._status.end_by_round = report.duration_s or 0.0
        (bytes_in, bytes_out), (in_before, out_before) = self._count_bytes(), self._bytes_before
        message = self._numbers(report, bytes_in=bytes_in - in_before, bytes_out=bytes_out - out_before)
        self._sink.update(is_urgent=False, metrics=message.metrics)
        self._show(_shown(report, message), report.round)
        self._sink.publish_metrics(message)

    def _numbers(self, report: RoundReport, *, bytes_in: int, bytes_out: int) -> ServerMetrics:
        return ServerMetrics(
            task_id=self._plan.task_id,
            run_id=self._plan.run_id,
            launch=self._plan.launch,
            round=count_of(report.round),
            metrics=self._cutter.cut_numbers(report.metrics),
            duration_s=report.duration_s,
            bytes_in=count_of(bytes_in),
            bytes_out=count_of(bytes_out),
            gl_model=self._status.gl_model_v,
            at=utc_now(),
        )


def _shown(report: RoundReport, message: ServerMetrics) -> Mapping[str, float]:
    """Return what W&B shows of a round, under the names that clients use there."""
    times = {} if report.duration_s is None else {"round_seconds": report.duration_s}
    return {
        **report.metrics,
        **times,
        "bytes_in": message.bytes_in,
        "bytes_out": message.bytes_out,
        "round": report.round,
    }
