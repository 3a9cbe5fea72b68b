"""What a run tells of its rounds: on the bus, on W&B and in FedOps' status, the same numbers everywhere."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fedops_mqtt.aggregation.rounds import RoundReport
from fedops_mqtt.aggregation.run_settings import RunPlan
from fedops_mqtt.protocol import MetricsCutter, ServerCondition, ServerMetrics, count_of, utc_now
from fedops_mqtt.runtime.wandb_log import Show

_log = logging.getLogger(__name__)


class RoundStatus(Protocol):
    """What FedOps' status of a server shows of its rounds; times in seconds since the epoch."""

    round: int
    start_by_round: float
    end_by_round: float

    @property
    def gl_model_v(self) -> int:
        """Number of the global model that the run makes."""
        ...


class MetricsSink(Protocol):
    """Who says things for this server."""

    def say(self, *, is_urgent: bool = True, **changes: Any) -> None:
        """Change what the status says."""

    def tell(self, metrics: ServerMetrics) -> None:
        """Publish numbers."""


class RoundReporter:
    """Tells of one run; `count_bytes` returns what its line has received and sent so far."""

    def __init__(
        self,
        *,
        plan: RunPlan,
        status: RoundStatus,
        voice: MetricsSink,
        show: Show,
        count_bytes: Callable[[], tuple[int, int]],
    ) -> None:
        self._plan = plan
        self._status = status
        self._voice = voice
        self._show = show
        self._count_bytes = count_bytes
        self._bytes_before = (0, 0)
        self._cutter = MetricsCutter(_log.warning)

    def begin(self, round_: int) -> None:
        """A round begins: its time and bytes count from here."""
        round_ = count_of(round_)  # a strategy with rounds of its own may count in numpy's integers, or below 0
        self._status.round, self._status.start_by_round = round_, time.time()
        self._bytes_before = self._count_bytes()
        self._voice.say(status=ServerCondition.RUNNING, round=round_)

    def report(self, report: RoundReport) -> None:
        """Tell a round so far."""
        self._status.end_by_round = report.duration_s or 0.0
        (bytes_in, bytes_out), (in_before, out_before) = self._count_bytes(), self._bytes_before
        told = self._numbers(report, bytes_in=bytes_in - in_before, bytes_out=bytes_out - out_before)
        self._voice.say(is_urgent=False, metrics=told.metrics)
        self._show(_shown(report, told), report.round)
        self._voice.tell(told)

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


def _shown(report: RoundReport, told: ServerMetrics) -> Mapping[str, float]:
    """Return what W&B shows of a round, under the names that clients use there."""
    times = {} if report.duration_s is None else {"round_seconds": report.duration_s}
    return {**report.metrics, **times, "bytes_in": told.bytes_in, "bytes_out": told.bytes_out, "round": report.round}
