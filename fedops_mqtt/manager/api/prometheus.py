"""The manager in numbers, for Prometheus: `GET /metrics`. Gauges are read when asked for; counters start with us.

Labels are tasks, statuses and outcomes only: a label per client would cost a time series each.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Counter as PromCounter
from prometheus_client import Histogram as PromHistogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from fedops_mqtt.core.run import Run
from fedops_mqtt.manager.bus_reader import BusReader
from fedops_mqtt.manager.journal import Batch
from fedops_mqtt.manager.open_runs import OpenRuns
from fedops_mqtt.protocol import MemberCondition, RunOutcome, visible

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

OTHER_TASKS = "(other)"
"""The label of all tasks that are not in the tasks file: their names can be invented by any client."""

_TRIGGER_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120)
"""From a warm start on a fast machine to FedOps' polling and beyond."""
_ROUND_BUCKETS_S = (0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600)
_ENDS = frozenset({*MemberCondition} - {MemberCondition.CHOSEN, MemberCondition.TRIGGERED, MemberCondition.TRAINING})


class _Bus(Protocol):
    @property
    def is_connected(self) -> bool: ...

    @property
    def num_malformed(self) -> int: ...


class ManagerMetrics:
    """Counts what turns of the manager have written, and reads the rest where it stands."""

    def __init__(self, *, bus_reader: BusReader, open_runs: OpenRuns, connection: _Bus) -> None:
        self._bus_reader = bus_reader
        self._open_runs = open_runs
        self._connection = connection
        self._registry = CollectorRegistry()
        self._runs = PromCounter("fedops_runs", "Runs that ended.", ("task_id", "outcome"), registry=self._registry)
        self._members = PromCounter(
            "fedops_run_clients", "Clients in runs, by how it ended for them.", ("task_id", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._delays = PromHistogram(
            "fedops_trigger_to_training_seconds",
            "From a client's first trigger to its training process having joined.",
            ("task_id",), buckets=_TRIGGER_BUCKETS_S, registry=self._registry,
        )  # fmt: skip
        self._round_s = PromHistogram(
            "fedops_round_seconds", "Time of one round, by the FL server's clock.", ("task_id",),
            buckets=_ROUND_BUCKETS_S, registry=self._registry,
        )  # fmt: skip
        self._bytes = PromCounter(
            "fedops_line_bytes", "Model bytes on the line, by direction at the FL server.", ("task_id", "direction"),
            registry=self._registry,
        )  # fmt: skip
        self._known: set[str] = set()
        self._gauges: list[Metric] = []
        self._registry.register(self)

    async def exposition(self) -> bytes:
        """Return everything in Prometheus' text format; it is read here, and written in a thread."""
        tasks = {str(standing[0]) for standing in self._bus_reader.fleet.counts}
        for task_id in tasks - self._known:
            if self._bus_reader.knows(task_id):
                self._begin(task_id)
        self._gauges = list(self._read())
        return await asyncio.to_thread(generate_latest, self._registry)

    def _begin(self, task_id: str) -> None:
        """Let a task's counters stand at 0 before they count: Prometheus sees no growth in a first sample of 1."""
        self._known.add(task_id)
        for outcome in RunOutcome:
            self._runs.labels(task_id, outcome.value)
        for status in _ENDS:
            self._members.labels(task_id, status.value)
        for direction in ("in", "out"):
            self._bytes.labels(task_id, direction)
        self._delays.labels(task_id)
        self._round_s.labels(task_id)

    def take(self, batch: Batch, tasks: Mapping[str, str]) -> None:
        """Count what a turn has written; `tasks` by run."""
        for before, after in batch.runs.values():
            self._take_run(before, after)
        for row in batch.rounds:
            task_id = tasks.get(row["run_id"], "")
            if row["duration_s"] is not None:
                self._round_s.labels(task_id).observe(row["duration_s"])
            self._bytes.labels(task_id, "in").inc(row["bytes_in"])
            self._bytes.labels(task_id, "out").inc(row["bytes_out"])

    def _take_run(self, before: Run | None, after: Run) -> None:
        task_id = after.spec.task_id
        if after.outcome is not None and (before is None or before.outcome is None):
            self._runs.labels(task_id, after.outcome.value).inc()
        ended: Counter[str] = Counter()
        delays = self._delays.labels(task_id)
        for mac, member in after.members.items():
            known = before.members.get(mac) if before else None
            if member is known:
                continue
            if member.training_at is not None and (known is None or known.training_at is None):
                delays.observe(max(0.0, member.training_at - (member.first_fired_at or 0.0)))
            if member.status in _ENDS and (known is None or known.status is not member.status):
                ended[member.status.value] += 1
        for status, count in ended.items():
            self._members.labels(task_id, status).inc(count)

    def collect(self) -> Iterator[Metric]:
        """Yield what was read last (prometheus_client's collector protocol)."""
        yield from self._gauges

    def _read(self) -> Iterator[Metric]:
        yield self._clients()
        moved = GaugeMetricFamily(
            "fedops_clients_moved_seconds", "When a client last changed presence or status, s since 1970."
        )
        moved.add_metric([], self._bus_reader.moved_at)
        yield moved
        yield from self._read_runs()
        connected = GaugeMetricFamily("fedops_broker_connected", "1 while the manager has its broker.")
        connected.add_metric([], float(self._connection.is_connected))
        yield connected
        yield from self._counters()

    def _clients(self) -> Metric:
        clients = GaugeMetricFamily(
            "fedops_clients", "Clients by task, presence and status.", labels=("task_id", "presence", "status")
        )
        counts: Counter[tuple[str, str, str]] = Counter()
        for (task_id, presence, status), count in self._bus_reader.fleet.counts.items():
            counts[task_id if self._bus_reader.knows(task_id) else OTHER_TASKS, presence, status] += count
        for labels, count in sorted(counts.items()):
            clients.add_metric([str(label) for label in labels], count)
        return clients

    def _read_runs(self) -> Iterator[Metric]:
        active = GaugeMetricFamily("fedops_active_runs", "Runs that go on.", labels=("task_id",))
        round_ = GaugeMetricFamily("fedops_run_round", "Rounds done in a task's newest run.", labels=("task_id",))
        model = GaugeMetricFamily(
            "fedops_run_metric", "Newest number of a task's newest run, by its name.", labels=("task_id", "name")
        )
        newest = {run.spec.task_id: run for run in sorted(self._open_runs, key=lambda run: run.created_at)}
        for task_id, run in newest.items():
            active.add_metric([task_id], float(self._open_runs.active(task_id) is not None))
            round_.add_metric([task_id], run.server.round if run.server else 0)
            named = {visible(name): value for name, value in (run.server.metrics if run.server else {}).items()}
            for name, value in named.items():
                if value is not None:
                    model.add_metric([task_id, name], value)
        yield from (active, round_, model)

    def _counters(self) -> Iterator[Metric]:
        bus_reader = self._bus_reader
        dropped = (
            "fedops_broker_dropped_messages",
            "Messages dropped, by the broker's own count.",
            bus_reader.dropped_messages.num_dropped,
        )
        facts = (
            dropped,
            ("fedops_broker_reconnects", "How often the manager's connection came back.", bus_reader.num_reconnects),
            (
                "fedops_client_reconnects",
                "How often clients came back with a new epoch.",
                bus_reader.num_client_reconnects,
            ),
            ("fedops_stale_statuses", "Statuses dropped because a later one was known.", bus_reader.fleet.num_stale),
            (
                "fedops_over_budget_messages",
                "Clients' messages dropped: the client sent too many.",
                bus_reader.num_over_budget,
            ),
            ("fedops_malformed_messages", "Messages that were none of the protocol.", self._connection.num_malformed),
        )
        for name, text, count in facts:
            counter = CounterMetricFamily(name, text)
            counter.add_metric([], max(0, count))
            yield counter
