"""The state of clients, servers, runs and their newest numbers as records, applied from bus messages alone.

A bus event becomes presence here alone: `bus.fleet`, `watch` and the manager's `BusReader` each own a `FleetView`. It
has no clock, screen or socket; its owner feeds it events and the time they came. The records of clients and runs have
the names and shapes of the manager's API (`manager/api/models`).
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from fedops_mqtt.bus.events import BusEvent, Cleared, Connected, Disconnected, Dropped, Malformed, Received
from fedops_mqtt.core.fencing import DroppedMessageDetector
from fedops_mqtt.core.fleet import AnyStatus, ClientView, Fleet, ServerView, StatusView, facts_of
from fedops_mqtt.protocol import (
    MAX_METRICS,
    Channel,
    ClientMetrics,
    ClientStatus,
    ManagerStatus,
    MemberCondition,
    Message,
    MetricsKind,
    RunStatus,
    ServerMetrics,
    ServerStatus,
    Topic,
)

Record = dict[str, Any]
"""One client, server, run, round or manager as JSON; `kind` says which."""

Key = tuple[str, ...]

RECENT = 5
"""Changes that a screen shows."""


@dataclass(kw_only=True, slots=True)
class FleetView:
    """Everything that a task's topics have shown so far."""

    fleet: Fleet = field(default_factory=Fleet)
    metrics: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """Newest numbers by `(task_id, client_mac)`."""
    history: dict[tuple[str, str], list[ServerMetrics]] = field(default_factory=dict)
    """The rounds of a run, oldest first, by `(task_id, run_id)`: a server reports its own task's runs only."""
    dropped_messages: DroppedMessageDetector = field(default_factory=DroppedMessageDetector)
    """What the broker kept from us."""
    is_connected: bool | None = None
    """None before the first connection."""
    recent: deque[Record] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The last changes, the newest last."""
    _last_facts: dict[Key, object] = field(default_factory=dict)
    """What the last record of each owner was made of, by its `key_of`."""

    def apply(self, event: BusEvent, now: float) -> bool:
        """Apply one event; False when it is not worth a line, as a stale status or a client's numbers are not."""
        match event:
            case Received(_, message, is_retained):
                return self._apply_message(message, now, is_retained=is_retained)
            case Connected():
                self.is_connected = True
                self.fleet.listen(now)
                self.dropped_messages.listen()
            case Disconnected():
                self.is_connected = False
                self.fleet.pause()
            case Cleared(topic):
                self._forget(topic)
            case Dropped(num_messages):
                self.dropped_messages.count(num_messages)
                return False
            case Malformed():
                return False
            case _:
                assert_never(event)
        return True

    def apply_status(self, status: AnyStatus, *, now: float, is_retained: bool) -> bool:
        """Apply one status; False when it was stale."""
        if isinstance(status, ClientStatus):
            is_known = self.fleet.client(status.task_id, status.client_mac) is not None
            self.dropped_messages.note(status, is_known=is_known, is_retained=is_retained)
        return self.fleet.apply(status, now=now, is_retained=is_retained)

    def take(self, event: BusEvent, now: float) -> Record | None:
        """Apply one event; return what changed of whom, None when nothing that is worth a line did."""
        change = self._change_of(event) if self.apply(event, now) else None
        if change is not None:
            self.recent.append(change)
        return change

    def problem(self) -> Record | None:
        """Return what is wrong with the bus when it was not returned with this reason before."""
        problem = self.dropped_messages.problem
        if problem is None:
            return None
        return self._changed_record({"kind": "bus", "status": "dropping", "reason": problem})

    def expire(self, now: float) -> list[Record]:
        """Take owners whose lease has ended as out; return what changed."""
        views = self.fleet.expire(now)
        changes = [change for view in views if (change := self._changed_client(view))]
        self.recent.extend(changes)
        return changes

    def records(self) -> Iterator[Record]:
        """Yield everybody as they are now: manager, servers, runs, clients."""
        if self.fleet.manager is not None:
            yield manager_record(self.fleet.manager)
        yield from (server_record(self.fleet.servers[task_id]) for task_id in sorted(self.fleet.servers))
        yield from (run_record(view.status) for view in self.runs())
        yield from (client_record(self, view) for view in self.clients())

    def clients(self) -> list[ClientView]:
        """Return the clients by task and MAC."""
        return [self.fleet.clients[key] for key in sorted(self.fleet.clients)]

    def runs(self) -> list[StatusView[RunStatus]]:
        """Return the runs, the newest first."""
        return sorted(self.fleet.runs.values(), key=lambda view: view.status.created_at, reverse=True)

    def _apply_message(self, message: Message, now: float, *, is_retained: bool) -> bool:
        match message:
            case ClientStatus() | ServerStatus() | RunStatus() | ManagerStatus():
                return self.apply_status(message, now=now, is_retained=is_retained)
            case ClientMetrics() if message.kind is not MetricsKind.SYSTEM:
                key = (message.task_id, message.client_mac)
                known = {**self.metrics.get(key, {}), **_measures(message.values)}
                self.metrics[key] = dict(list(known.items())[-MAX_METRICS:])
            case ServerMetrics():
                rounds = self.history.setdefault((message.task_id, message.run_id), [])
                rounds[:] = [known for known in rounds if known.round < message.round]
                rounds.append(message)
                return True
            case _:
                pass
        return False

    def _change_of(self, event: BusEvent) -> Record | None:
        """Return the record of what an event changed."""
        match event:
            case Connected():
                return {"kind": "bus", "status": "connected"}
            case Disconnected(reason):
                return {"kind": "bus", "status": "lost", "reason": reason}
            case Cleared(topic):
                return self._forgotten_record(topic)
            case Received(_, ServerMetrics() as message, _):
                return round_record(message)
            case Received(_, ClientStatus() as message, _):
                return self._changed_client(self.fleet.clients[(message.task_id, message.client_mac)])
            case Received(_, ServerStatus() as message, _):
                return self._changed_record(server_record(self.fleet.servers[message.task_id]))
            case Received(_, RunStatus() as message, _):
                return self._changed_record(run_record(message))
            case Received(_, ManagerStatus() as message, _):
                view = self.fleet.manager or StatusView(status=message, heard_at=0, since=0)
                return self._changed_record(manager_record(view))
            case _:
                return None

    def _changed_client(self, view: ClientView) -> Record | None:
        """Compare before the record is made: of a large fleet nearly every message is a heartbeat."""
        client = (view.status.task_id, view.status.client_mac)
        is_changed = self._is_changed(("client", *client), (facts_of(view), self.metrics.get(client)))
        return client_record(self, view) if is_changed else None

    def _changed_record(self, record: Record) -> Record | None:
        return record if self._is_changed(key_of(record), record) else None

    def _is_changed(self, key: Key, facts: object) -> bool:
        """A heartbeat repeats a status as it is; that is no change."""
        if self._last_facts.get(key) == facts:
            return False
        self._last_facts[key] = facts
        return True

    def _forget(self, topic: Topic) -> None:
        self.fleet.forget(topic)
        if topic.channel is Channel.CLIENT_STATUS:
            self.dropped_messages.forget(topic.task_id or "", topic.client_mac or "")
        self.history.pop((topic.task_id or "", topic.run_id or ""), None)

    def _forgotten_record(self, topic: Topic) -> Record | None:
        name = _NAME_OF_CHANNEL.get(topic.channel)
        if name is None:
            return None
        facts = {"task_id": topic.task_id, "client_mac": topic.client_mac, "run_id": topic.run_id}
        record = {"kind": name, **{fact: value for fact, value in facts.items() if value}, "status": "forgotten"}
        self._last_facts.pop(key_of(record), None)
        return record


_NAME_OF_CHANNEL = {
    Channel.CLIENT_STATUS: "client",
    Channel.SERVER_STATUS: "server",
    Channel.RUN_STATUS: "run",
    Channel.MANAGER_STATUS: "manager",
}


def client_record(fleet_view: FleetView, view: ClientView) -> Record:
    """Return a client's record: the API's without its times, and its newest `metrics`.

    `reason` is the one that its presence or its last training has.
    """
    status = view.status
    return {
        "kind": "client",
        **status.model_dump(mode="json", exclude=_FENCING),
        "presence": str(view.presence),
        "reason": view.out_reason or status.reason,
        "metrics": fleet_view.metrics.get((status.task_id, status.client_mac), {}),
    }


_FENCING = {"epoch", "seq", "at", "heartbeat_s"}
"""Fields of a status that are in no record: its place in an order, and its lease."""


def server_record(view: ServerView) -> Record:
    """Return an FL server's record."""
    status = view.status
    return {
        "kind": "server",
        "task_id": status.task_id,
        "presence": str(view.presence),
        "status": str(status.status),
        "reason": view.out_reason or status.reason,
        "run_id": status.run_id,
        "server_ip": status.server_ip,
        "round": status.round,
        "num_rounds": status.num_rounds,
        "gl_model": status.gl_model,
    }


def run_record(status: RunStatus) -> Record:
    """Return a run's record: the API's summary without its times and without what only the manager knows."""
    counts = status.clients_by_status or Counter(member.status for member in status.clients.values())
    return {
        "kind": "run",
        **status.model_dump(mode="json", exclude=_NOT_OF_A_RUN),
        "clients_by_status": {str(each): counts[each] for each in MemberCondition if counts.get(each)},
    }


_NOT_OF_A_RUN = {*_FENCING, "instance", "term", "clients", "clients_by_status", "created_at", "ended_at"}
"""Fields of the status that are not in the record: the manager's own, its times, and who of a large run it listed."""


def round_record(message: ServerMetrics) -> Record:
    """Return the record of a round of a run."""
    return {
        "kind": "round",
        "task_id": message.task_id,
        "run_id": message.run_id,
        "round": message.round,
        "metrics": dict(message.metrics),
        "duration_s": message.duration_s,
    }


def manager_record(view: StatusView[ManagerStatus]) -> Record:
    """Return the manager's record."""
    status = view.status
    return {
        "kind": "manager",
        "presence": str(view.presence),
        "status": str(status.status),
        "reason": view.out_reason,
        "url": status.url,
    }


def key_of(record: Record) -> Key:
    """Return whose record it is; a round has no owner."""
    return (record["kind"], *(str(record.get(name)) for name in _NAMES_OF_KIND[record["kind"]]))


_NAMES_OF_KIND = {
    "client": ("task_id", "client_mac"),
    "server": ("task_id",),
    "run": ("run_id",),
    "manager": (),
    "bus": (),
}


def _measures(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers that show how the training goes; where its time went is for other views."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if name not in _ABOUT_TIME}


_ABOUT_TIME = frozenset({"seconds", "wait_s", "download_s", "compute_s", "upload_s", "bytes_in", "bytes_out"})
