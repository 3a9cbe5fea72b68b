"""What the bus says, folded into the fleet and the runs. Nothing is decided here and nothing is done.

The fleet is folded as words come, also while the journal is written; runs are told of them, and leases judged, when
everything has been taken in and a plan is about to be made (`settle`).
"""

import logging
from collections import defaultdict
from collections.abc import Container, Hashable, Iterable
from typing import assert_never

import orjson

from fedops_mqtt.bus import BusEvent, Cleared, Connected, Disconnected, Dropped, Malformed, Received
from fedops_mqtt.core.fencing import DroppedMessageDetector
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
"""Keys at which those that have used nothing of late are let go."""


class Budget:
    """A token bucket for each key; the caller's clock, s, never goes back.

    Args:
        per_s: what is added a second.
        at_once: what a key has at first, and at most.
    """

    def __init__(self, *, per_s: float, at_once: float) -> None:
        self._per_s = per_s
        self._at_once = at_once
        self._left: dict[Hashable, tuple[float, float]] = {}
        self._tidy_at = _KEPT

    def take(self, key: Hashable, cost: float, *, now: float) -> bool:
        """Use some of what a key has left; False, and nothing used, where that is not enough."""
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
"""Between two looks at all leases; they are seconds long, and thousands of messages may come in one."""


MAX_OTHER_TASKS = 4
"""Tasks that are not in the tasks file under which one client is shown: enough to see that somebody mistyped one."""

STATUSES_PER_S, STATUSES_AT_ONCE = 20.0, 500.0
"""Of one client; a daemon says a few a second at most. What is beyond is dropped: the heartbeat says it again."""

JOURNAL_BYTES_PER_S, JOURNAL_BYTES_AT_ONCE = 4_096.0, 4 * 1024.0 * 1024.0
"""Of one client's numbers and changes: 350 MB a day, and a thousand rounds at once."""

_ROW_BYTES = 256
"""Of a row of the journal beside its values."""


class BusReader:
    """One reader of the bus. `tasks`: those of the tasks file; None: every task is one.

    A client of another task is shown, and that is all: its words are in no journal and in no series of `/metrics`.

    Attributes:
        fleet: who is here.
        losses: what the broker dropped on the way.
        orphans: topics of retained runs that nobody drives any more; whoever clears one takes it out.
        strangers: the last word of servers whose run is not in the ledger, by task.
        stragglers: clients that say they train a run which is not in the ledger, by task and MAC.
        num_malformed: messages that were none.
        num_reconnects: how often the connection came back.
        num_client_reconnects: how often a client spoke with a new epoch.
        moved_at: when a client last came to stand where it had not stood, by the clock that `fold` is told; 0 before.
        changed: clients that spoke, went or were forgotten since `take_changed`.
        num_over_budget: words of clients that were dropped because they had said too much.
    """

    def __init__(self, fleet: Fleet, open_runs: OpenRuns, tasks: Container[str] | None = None) -> None:
        self.fleet = fleet
        self.losses = DroppedMessageDetector()
        self._told_at: int | None = None
        self.orphans: dict[str, Topic] = {}
        self.unknown_servers: dict[str, ServerStatus] = {}
        self.stragglers: dict[tuple[str, str], StatusView[ClientStatus]] = {}
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
        self._ledger = open_runs
        self._news: defaultdict[str, list[RunEvent]] = defaultdict(list)

    def take(self, events: Iterable[BusEvent], now: float) -> bool:
        """Fold and settle at once; return what `fold` does."""
        is_new = self.fold(events, now)
        self.settle(now)
        return is_new

    def fold(self, events: Iterable[BusEvent], now: float) -> bool:
        """Take in what came; return True when the connection is new and everything of ours has to be said again."""
        is_new = False
        for event in events:
            match event:
                case Connected():
                    self.fleet.listen(now)
                    self.losses.listen()
                    self.num_reconnects += 1
                    is_new = True
                case Disconnected():
                    self.fleet.pause()
                case Malformed():
                    self.num_malformed += 1
                case Cleared(topic=topic):
                    is_new |= self._cleared(topic)
                case Received():
                    self._received(event, now)
                case Dropped(num_messages=num_messages):
                    self.losses.count(num_messages)
                case _:
                    assert_never(event)
        self._tell_losses()
        return is_new

    def settle(self, now: float) -> None:
        """Bring the runs up to what was folded; no plan may be made of a fleet that the runs have not heard of."""
        self._expire(now)
        for run_id, news in self._news.items():
            self._ledger.apply(run_id, news, now)
        self._news.clear()

    def take_unknown_servers(self) -> list[ServerStatus]:
        """Return the servers that were met since the last time."""
        unknown_servers, self.unknown_servers = list(self.unknown_servers.values()), {}
        return unknown_servers

    def note_clients_of_closed_runs(self, run: Run) -> None:
        """A run leaves the ledger: whoever still trains it is one."""
        for view in self.fleet.of_task(run.spec.task_id):
            if view.status.run is not None and view.status.run.run_id == run.run_id:
                self.stragglers[view.status.task_id, view.status.client_mac] = view

    def take_changed(self) -> set[tuple[str, str]]:
        """Return the clients, by task and MAC, of whom something was heard since the last time."""
        changed, self.changed = self.changed, set()
        return changed

    def _received(self, event: Received, now: float) -> None:
        match event.message:
            case ClientStatus() as status:
                if self._is_shown(status) and (event.is_retained or self._is_within(self._statuses, status, 1, now)):
                    self._client(status, now, is_retained=event.is_retained)
            case ServerStatus() as status if self.knows(status.task_id):
                self._server(status, now, is_retained=event.is_retained)
            case ServerMetrics() as said:
                self._ledger.note_round(said, now)
            case ClientMetrics() as said if self.knows(said.task_id):
                if self._is_within(self._journal_bytes, said, _ROW_BYTES + len(orjson.dumps(said.values)), now):
                    self._ledger.note_metrics(said, now)
            case RunStatus() as said if event.is_retained and said.run_id not in self._ledger:
                self.orphans[said.run_id] = event.topic
            case _:
                pass

    def knows(self, task_id: str) -> bool:
        """Return whether a task is in the tasks file, or has a run that began when it was."""
        return self._tasks is None or task_id in self._tasks or bool(self._ledger.of_task(task_id))

    def _is_shown(self, status: ClientStatus) -> bool:
        """Take a client's word for a task that is none only for a few: the names are its own to invent."""
        if self.knows(status.task_id):
            return True
        others = self._other_tasks[status.client_mac]
        if status.task_id not in others and len(others) >= MAX_OTHER_TASKS:
            self._drop(status.client_mac, f"more than {MAX_OTHER_TASKS} tasks that are not in the tasks file")
            return False
        others.add(status.task_id)
        return True

    def _is_within(self, budget: Budget, said: ClientStatus | ClientMetrics, cost: float, now: float) -> bool:
        is_within = budget.take(said.client_mac, cost, now=now)
        if not is_within:
            self._drop(said.client_mac, "more than a client may say at once")
        return is_within

    def _drop(self, client_mac: str, why: str) -> None:
        self.num_over_budget += 1
        # As at the door of the bus: the 1st, 2nd, 4th, 8th, … is told.
        if self.num_over_budget & (self.num_over_budget - 1) == 0:
            facts = {"client_mac": client_mac, "why": why, "dropped_so_far": self.num_over_budget}
            logger.warning("dropped a client's message", extra=facts)

    def _note_client(self, status: ClientStatus, now: float) -> None:
        if self.knows(status.task_id) and self._is_within(
            self._journal_bytes, status, _ROW_BYTES + len(status.reason or ""), now
        ):
            self._ledger.note(note_client(status, now))

    def _client(self, status: ClientStatus, now: float, *, is_retained: bool) -> None:
        before = self.fleet.client(status.task_id, status.client_mac)
        self.losses.note(status, is_known=before is not None, is_retained=is_retained)
        if not self.fleet.apply(status, now=now, is_retained=is_retained):
            return
        self.changed.add((status.task_id, status.client_mac))
        self.num_client_reconnects += before is not None and not is_retained and before.status.epoch < status.epoch
        view = self.fleet.clients[status.task_id, status.client_mac]
        if before is None or (before.presence, before.status.status) != (view.presence, view.status.status):
            self.moved_at = now
        is_first_live_word = before is None and not is_retained
        if is_first_live_word or (before is not None and before.status.status is not status.status):
            self._note_client(status, now)
        self._tell_runs(view)

    def _server(self, status: ServerStatus, now: float, *, is_retained: bool) -> None:
        if not self.fleet.apply(status, now=now, is_retained=is_retained):
            return
        word = self.fleet.servers[status.task_id].status
        if word.run_id is not None and word.run_id in self._ledger:
            self._news[word.run_id].append(word)
        elif word.run_id is not None:
            self.unknown_servers[status.task_id] = word

    def _tell_runs(self, view: StatusView[ClientStatus]) -> None:
        mac, hand = view.status.client_mac, view.status.run
        for run in self._ledger.of_task(view.status.task_id):
            if mac in run.members:
                self._news[run.run_id].append(view)
        if hand is not None and hand.run_id not in self._ledger:
            self.stragglers[view.status.task_id, mac] = view

    def _expire(self, now: float) -> None:
        """Judge the leases, not at every message: it is a look at everybody."""
        if 0 <= now - self._expired_at < LEASE_CHECK_S:
            return
        self._expired_at = now
        for view in self.fleet.expire(now):
            self.changed.add((view.status.task_id, view.status.client_mac))
            self.moved_at = now
            silent = view.status.model_copy(update={"reason": "silent"})
            self._note_client(silent, now)
            self._tell_runs(view)

    def _tell_losses(self) -> None:
        """Once a connection: the numbers grow, the sentence stays."""
        problem = self.losses.problem
        if problem is not None and self._told_at != self.num_reconnects:
            self._told_at = self.num_reconnects
            logger.warning("messages are lost at the broker", extra={"problem": problem})

    def _cleared(self, topic: Topic) -> bool:
        """Take note; True when it was a run that goes on."""
        self.fleet.forget(topic)
        if topic.channel is Channel.CLIENT_STATUS:
            self._other_tasks[topic.client_mac or ""].discard(topic.task_id or "")
            self.losses.forget(topic.task_id or "", topic.client_mac or "")
            self.changed.add((topic.task_id or "", topic.client_mac or ""))
        return topic.channel is Channel.RUN_STATUS and (topic.run_id or "") in self._ledger


def needs_watching(run: Run, fleet: Fleet) -> bool:
    """Return whether a run's server is out on the bus, so that only its line can tell whether it lives."""
    if (
        run.has_ended
        or (run.launch == 0 and not run.spec.is_adopted)
        or run.exited_at is not None
        or run.is_unreachable
    ):
        return False
    view = fleet.servers.get(run.spec.task_id)
    knows_address = run.server is not None and run.server.launch == run.launch and run.server.server_ip is not None
    return knows_address and (view is None or view.status.run_id != run.run_id or view.is_out)
