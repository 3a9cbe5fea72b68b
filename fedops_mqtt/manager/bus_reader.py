"""Applies the bus's events to the fleet and to the open runs; it decides nothing and publishes nothing.

A `FleetView` makes presence of events; budgets, runs and the journal are the manager's own and are here. The fleet is
updated at each message, also while the journal is written (`apply`); the runs are updated, and leases checked, once a
turn, right before the plan is made (`settle`).
"""

import logging
from collections import defaultdict
from collections.abc import Container, Hashable, Iterable
from typing import assert_never

import orjson

from fedops_mqtt.bus import BusEvent, Cleared, Connected, Disconnected, Dropped, Malformed, Received
from fedops_mqtt.bus.fleet_view import FleetView
from fedops_mqtt.core.fleet import Fleet, StatusView
from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_member import RunEvent
from fedops_mqtt.manager.open_runs import OpenRuns, note_client
from fedops_mqtt.protocol import (
    Channel,
    ClientMetrics,
    ClientStatus,
    RunStatus,
    ServerMetrics,
    ServerStatus,
    Topic,
)

_KEPT = 10_000
"""Keys at which those with a full bucket are removed."""


class Budget:
    """A token bucket for each key; the caller's clock, s, must not go back.

    Args:
        per_s: what is added a second.
        at_once: the size of a bucket; a new one is full.
    """

    def __init__(self, *, per_s: float, at_once: float) -> None:
        self._per_s = per_s
        self._at_once = at_once
        self._left: dict[Hashable, tuple[float, float]] = {}
        self._tidy_at = _KEPT

    def take(self, key: Hashable, cost: float, *, now: float) -> bool:
        """Take `cost` out of a key's bucket; False, and nothing taken, where it holds less."""
        left, at = self._left.get(key, (self._at_once, now))
        left = min(self._at_once, left + (now - at) * self._per_s)
        is_enough = cost <= left
        self._left[key] = (left - cost if is_enough else left, now)
        if len(self._left) >= self._tidy_at:
            self._left = {
                each: (left, at)
                for each, (left, at) in self._left.items()
                if left + (now - at) * self._per_s < self._at_once
            }
            self._tidy_at = max(_KEPT, 2 * len(self._left))
        return is_enough


logger = logging.getLogger(__name__)

LEASE_CHECK_S = 0.2
"""Between two checks of all leases: a lease is seconds long, and thousands of messages may come in one."""


MAX_OTHER_TASKS = 4
"""Tasks that are not in the tasks file under which one client is listed: enough to find a mistyped name."""

STATUSES_PER_S, STATUSES_AT_ONCE = 20.0, 500.0
"""Of one client; a daemon publishes a few a second at most. More are dropped: the heartbeat repeats the last one."""

JOURNAL_BYTES_PER_S, JOURNAL_BYTES_AT_ONCE = 4_096.0, 4 * 1024.0 * 1024.0
"""Of one client's metrics and changes: 350 MB a day, and a thousand rounds at once."""

_ROW_BYTES = 256
"""Of a row of the journal beside its values."""


class BusReader:
    """The reader of one connection. `tasks`: those of the tasks file; None: every task is known.

    A client of an unknown task is listed, but has no rows in the journal and no series of its own in `/metrics`.

    Attributes:
        fleet: clients, servers and runs on the bus.
        dropped_messages: detects what the broker dropped.
        orphaned_run_topics: topics of retained runs that no manager drives; whoever clears one removes it here.
        unknown_servers: the last status of each server whose run is not open, by task.
        clients_of_closed_runs: clients whose status names a run that is not open, by task and MAC.
        num_malformed: messages that could not be decoded.
        num_reconnects: how often the connection came back.
        num_client_reconnects: how often a client came back with a new epoch.
        moved_at: when a client last changed presence or status, by the clock of `apply`; 0 before.
        changed: clients whose status came, expired or was cleared since `take_changed`.
        num_over_budget: messages of clients that were dropped because the client had sent too many.
    """

    def __init__(self, fleet: Fleet, open_runs: OpenRuns, tasks: Container[str] | None = None) -> None:
        self._view = FleetView(fleet=fleet)
        self.fleet = fleet
        self.dropped_messages = self._view.dropped_messages
        self._warned_at: int | None = None
        self.orphaned_run_topics: dict[str, Topic] = {}
        self.unknown_servers: dict[str, ServerStatus] = {}
        self.clients_of_closed_runs: dict[tuple[str, str], StatusView[ClientStatus]] = {}
        self._expired_at = float("-inf")
        self.num_malformed = 0
        self.num_reconnects = -1
        self.num_client_reconnects = 0
        self.moved_at = 0.0
        self.changed: set[tuple[str, str]] = set()
        self.num_over_budget = 0
        self._tasks = tasks
        self._other_tasks: defaultdict[str, set[str]] = defaultdict(set)
        self._statuses = Budget(per_s=STATUSES_PER_S, at_once=STATUSES_AT_ONCE)
        self._journal_bytes = Budget(per_s=JOURNAL_BYTES_PER_S, at_once=JOURNAL_BYTES_AT_ONCE)
        self._open_runs = open_runs
        self._run_events: defaultdict[str, list[RunEvent]] = defaultdict(list)

    def apply(self, events: Iterable[BusEvent], now: float) -> bool:
        """Apply events to the fleet; True when the connection is new and the runs have to be published again."""
        is_new = False
        for event in events:
            match event:
                case Received():
                    self._received(event, now)
                case Connected():
                    self._view.apply(event, now)
                    self.num_reconnects += 1
                    is_new = True
                case Cleared(topic=topic):
                    self._view.apply(event, now)
                    is_new |= self._cleared(topic)
                case Disconnected() | Dropped():
                    self._view.apply(event, now)
                case Malformed():
                    self.num_malformed += 1
                case _:
                    assert_never(event)
        self._warn_of_dropped_messages()
        return is_new

    def settle(self, now: float) -> None:
        """Check the leases and bring the runs up to the fleet; a plan needs both in the same state."""
        self._expire(now)
        for run_id, events in self._run_events.items():
            self._open_runs.apply(run_id, events, now)
        self._run_events.clear()

    def take_unknown_servers(self) -> list[ServerStatus]:
        """Return the unknown servers of which a status came since the last call."""
        unknown_servers, self.unknown_servers = list(self.unknown_servers.values()), {}
        return unknown_servers

    def note_clients_of_closed_runs(self, run: Run) -> None:
        """Note the clients that still train a run which is not open any more."""
        for view in self.fleet.of_task(run.spec.task_id):
            if view.status.run is not None and view.status.run.run_id == run.run_id:
                self.clients_of_closed_runs[view.status.task_id, view.status.client_mac] = view

    def take_changed(self) -> set[tuple[str, str]]:
        """Return the keys in `changed` and empty it."""
        changed, self.changed = self.changed, set()
        return changed

    def _received(self, event: Received, now: float) -> None:
        match event.message:
            case ClientStatus() as status:
                if self._is_shown(status) and (event.is_retained or self._is_within(self._statuses, status, 1, now)):
                    self._client(status, now, is_retained=event.is_retained)
            case ServerStatus() as status if self.knows(status.task_id):
                self._server(status, now, is_retained=event.is_retained)
            case ServerMetrics() as metrics:
                self._open_runs.note_round(metrics, now)
            case ClientMetrics() as metrics if self.knows(metrics.task_id):
                if self._is_within(self._journal_bytes, metrics, _ROW_BYTES + len(orjson.dumps(metrics.values)), now):
                    self._open_runs.note_metrics(metrics, now)
            case RunStatus() as status if event.is_retained and status.run_id not in self._open_runs:
                self.orphaned_run_topics[status.run_id] = event.topic
            case _:
                pass

    def knows(self, task_id: str) -> bool:
        """Return whether a task is in the tasks file, or has a run that began when it was."""
        return self._tasks is None or task_id in self._tasks or bool(self._open_runs.of_task(task_id))

    def _is_shown(self, status: ClientStatus) -> bool:
        """Accept a client's status of an unknown task for a few tasks only: the client can invent any number."""
        if self.knows(status.task_id):
            return True
        others = self._other_tasks[status.client_mac]
        if status.task_id not in others and len(others) >= MAX_OTHER_TASKS:
            self._drop(status.client_mac, f"more than {MAX_OTHER_TASKS} tasks that are not in the tasks file")
            return False
        others.add(status.task_id)
        return True

    def _is_within(self, budget: Budget, message: ClientStatus | ClientMetrics, cost: float, now: float) -> bool:
        is_within = budget.take(message.client_mac, cost, now=now)
        if not is_within:
            self._drop(message.client_mac, "more than a client may send at once")
        return is_within

    def _drop(self, client_mac: str, reason: str) -> None:
        self.num_over_budget += 1
        # Of many, the 1st, 2nd, 4th, 8th, … is logged.
        if self.num_over_budget & (self.num_over_budget - 1) == 0:
            facts = {"client_mac": client_mac, "reason": reason, "dropped_so_far": self.num_over_budget}
            logger.warning("dropped a client's message", extra=facts)

    def _note_client(self, status: ClientStatus, now: float) -> None:
        if self.knows(status.task_id) and self._is_within(
            self._journal_bytes, status, _ROW_BYTES + len(status.reason or ""), now
        ):
            self._open_runs.note(note_client(status, now))

    def _client(self, status: ClientStatus, now: float, *, is_retained: bool) -> None:
        before = self.fleet.client(status.task_id, status.client_mac)
        if not self._view.apply_status(status, now=now, is_retained=is_retained):
            return
        self.changed.add((status.task_id, status.client_mac))
        self.num_client_reconnects += before is not None and not is_retained and before.status.epoch < status.epoch
        view = self.fleet.clients[status.task_id, status.client_mac]
        if before is None or (before.presence, before.status.status) != (view.presence, view.status.status):
            self.moved_at = now
        is_first = before is None and not is_retained
        if is_first or (before is not None and before.status.status is not status.status):
            self._note_client(status, now)
        self._add_to_runs(view)

    def _server(self, status: ServerStatus, now: float, *, is_retained: bool) -> None:
        if not self._view.apply_status(status, now=now, is_retained=is_retained):
            return
        server = self.fleet.servers[status.task_id].status  # of a will: with what the will omits
        if server.run_id is not None and server.run_id in self._open_runs:
            self._run_events[server.run_id].append(server)
        elif server.run_id is not None:
            self.unknown_servers[status.task_id] = server

    def _add_to_runs(self, view: StatusView[ClientStatus]) -> None:
        mac, training = view.status.client_mac, view.status.run
        for run in self._open_runs.of_task(view.status.task_id):
            if mac in run.members:
                self._run_events[run.run_id].append(view)
        if training is not None and training.run_id not in self._open_runs:
            self.clients_of_closed_runs[view.status.task_id, mac] = view

    def _expire(self, now: float) -> None:
        if 0 <= now - self._expired_at < LEASE_CHECK_S:
            return
        self._expired_at = now
        for view in self.fleet.expire(now):
            self.changed.add((view.status.task_id, view.status.client_mac))
            self.moved_at = now
            silent = view.status.model_copy(update={"reason": "silent"})
            self._note_client(silent, now)
            self._add_to_runs(view)

    def _warn_of_dropped_messages(self) -> None:
        """Log the problem once a connection."""
        problem = self.dropped_messages.problem
        if problem is not None and self._warned_at != self.num_reconnects:
            self._warned_at = self.num_reconnects
            logger.warning("messages are lost at the broker", extra={"problem": problem})

    def _cleared(self, topic: Topic) -> bool:
        """Note that a topic was cleared; True when it was the status of an open run."""
        if topic.channel is Channel.CLIENT_STATUS:
            self._other_tasks[topic.client_mac or ""].discard(topic.task_id or "")
            self.changed.add((topic.task_id or "", topic.client_mac or ""))
        return topic.channel is Channel.RUN_STATUS and (topic.run_id or "") in self._open_runs


def needs_watching(run: Run, fleet: Fleet) -> bool:
    """Return whether a run's server is out on the bus, so that only a request to its line can show whether it lives."""
    has_server = run.launch > 0 or run.spec.is_adopted
    if not has_server or run.has_ended or run.exited_at is not None or run.is_unreachable:
        return False
    view = fleet.servers.get(run.spec.task_id)
    knows_address = run.server is not None and run.server.launch == run.launch and run.server.server_ip is not None
    return knows_address and (view is None or view.status.run_id != run.run_id or view.is_out)
