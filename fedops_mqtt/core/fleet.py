"""Which clients, servers and runs there are: retained statuses applied to views that no late or repeated one can spoil.

A `Fleet` has one owner, who feeds it what the bus brought and his own monotonic clock; it does nothing else. Apply
every message that was drained first, then ask `expire`: a lease is judged only by a reader that has read everything.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from typing import Generic, TypeVar

from fedops_mqtt.core.fencing import LAST_SEQ, Stamp, stamp_of
from fedops_mqtt.protocol import (
    ClientCondition,
    ClientStatus,
    CurrentRun,
    LastRun,
    LastTrigger,
    ManagerCondition,
    ManagerStatus,
    RunStatus,
    ServerCondition,
    ServerStatus,
    Topic,
    topics,
)

LEASE_HEARTBEATS = 3
"""Missed heartbeats until an owner counts as out: one may be lost, one late."""

DEFAULT_HEARTBEAT_S = 60.0
"""Taken for owners whose statuses do not give one."""

Key = TypeVar("Key")
Status = TypeVar("Status", ClientStatus, ServerStatus, ManagerStatus, RunStatus)
AnyStatus = ClientStatus | ServerStatus | ManagerStatus | RunStatus


class Presence(StrEnum):
    """Whether an owner is here. *Unconfirmed*: only its retained status shows it, nothing live was received yet."""

    ONLINE = "online"
    UNCONFIRMED = "unconfirmed"
    OUT = "out"


ClientKeyState = tuple[str, Presence, ClientCondition]
"""Where a client stands: its task, whether it is here, what it does."""


@dataclass(frozen=True, slots=True)
class PendingReturn:
    """Who may be back under a lower epoch: since when on the reader's clock, s, and the highest stamp since."""

    instance: str
    since: float
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView(Generic[Status]):
    """A reader's state of one owner: its last valid status, and what the reader's own clock adds to it."""

    status: Status
    heard_at: float
    """Reader's clock when the last valid status came, s."""
    since: float
    """Reader's clock when presence last changed, s."""
    is_confirmed: bool = False
    is_silent: bool = False
    snapshot: Stamp | None = None
    """Stamp of the last full status; a last will does not count."""
    comeback: "PendingReturn | None" = field(default=None, compare=False, repr=False)
    """Another instance that publishes below the known stamp while the owner is away; it may be a leftover."""

    @property
    def presence(self) -> Presence:
        """Here, out, or shown to be here by a retained status alone."""
        if self.is_out:
            return Presence.OUT
        return Presence.ONLINE if self.is_confirmed else Presence.UNCONFIRMED

    @property
    def is_out(self) -> bool:
        """True when the owner is known to be away."""
        return self.is_silent or reports_offline(self.status)

    @property
    def out_reason(self) -> str | None:
        """Why the owner is away: its own reason (`lost`, `shutdown`, …) or `silent`; None while it is here."""
        if not self.is_out:
            return None
        return self.status.reason if reports_offline(self.status) else "silent"


ClientView = StatusView[ClientStatus]
ServerView = StatusView[ServerStatus]


def reports_offline(status: AnyStatus) -> bool:
    """Return whether a status is its owner's goodbye or last will."""
    match status:
        case ClientStatus():
            return status.status is ClientCondition.CLIENT_OUT
        case ServerStatus():
            return status.status is ServerCondition.SERVER_OUT
        case ManagerStatus():
            return status.status is ManagerCondition.MANAGER_OUT
        case RunStatus():
            return False


def apply_status(
    view: StatusView[Status] | None, status: Status, *, now: float, is_retained: bool
) -> StatusView[Status] | None:
    """Return the view after one more status, or None when it is stale and changes nothing.

    Args:
        view: what was known before; None for an unknown owner.
        status: the status.
        now: the reader's clock, s.
        is_retained: the broker's copy for a newcomer, not a live one.
    """
    if view is None:
        stamp = None if is_will(status) else stamp_of(status)
        return StatusView(status=status, heard_at=now, since=now, is_confirmed=not is_retained, snapshot=stamp)
    if stamp_of(status) <= stamp_of(view.status):
        filled = _fill_in(view, status)
        return _come_back(filled or view, status, now=now, is_retained=is_retained) or filled
    return StatusView(
        status=_keep_what_a_will_omits(view.status, status) if is_will(status) else status,
        heard_at=now,
        since=view.since if reports_offline(status) == view.is_out else now,
        is_confirmed=view.is_confirmed or not is_retained,
        snapshot=view.snapshot if is_will(status) else stamp_of(status),
    )


def is_will(status: AnyStatus) -> bool:
    """Return whether a status was frozen at CONNECT and published by the broker."""
    return status.seq == LAST_SEQ


@dataclass(kw_only=True, slots=True)
class Fleet:
    """Every owner's view, for one reader.

    Attributes:
        default_heartbeat_s: taken for owners whose statuses do not give one, s.
        clients: views by `(task_id, client_mac)`.
        servers: views by `task_id`.
        runs: views by `run_id`; runs have no lease, the manager has.
        manager: the leading manager's view.
        num_stale: statuses dropped by fencing since the start.
        counts: how many clients stand where, kept as they move: asking does not cost a look at each.
    """

    default_heartbeat_s: float = DEFAULT_HEARTBEAT_S
    clients: dict[tuple[str, str], StatusView[ClientStatus]] = field(default_factory=dict)
    servers: dict[str, StatusView[ServerStatus]] = field(default_factory=dict)
    runs: dict[str, StatusView[RunStatus]] = field(default_factory=dict)
    manager: StatusView[ManagerStatus] | None = None
    num_stale: int = 0
    counts: Counter[ClientKeyState] = field(default_factory=Counter)
    _listening_since: float | None = None

    def listen(self, now: float) -> None:
        """Note that the reader is subscribed (again): every lease starts anew here."""
        self._listening_since = now

    @property
    def listening_since(self) -> float | None:
        """Since when the reader receives the bus without a gap; None while it is disconnected."""
        return self._listening_since

    def pause(self) -> None:
        """Note that the reader lost its connection: leases stand still until `listen`."""
        self._listening_since = None

    def apply(self, status: AnyStatus, *, now: float, is_retained: bool) -> bool:
        """Apply one status; return False when it was stale."""
        is_news = self._apply(status, now=now, is_retained=is_retained)
        if not is_news and not is_retained:
            self.num_stale += 1
        return is_news

    def _apply(self, status: AnyStatus, *, now: float, is_retained: bool) -> bool:
        match status:
            case ClientStatus():
                key = (status.task_id, status.client_mac)
                before = self.clients.get(key)
                client = apply_status(before, status, now=now, is_retained=is_retained)
                self._count(before if client else None, client)
                return _put(self.clients, key, client)
            case ServerStatus():
                server = apply_status(self.servers.get(status.task_id), status, now=now, is_retained=is_retained)
                return _put(self.servers, status.task_id, server)
            case RunStatus():
                run = apply_status(self.runs.get(status.run_id), status, now=now, is_retained=is_retained)
                return _put(self.runs, status.run_id, run)
            case ManagerStatus():
                manager = apply_status(self.manager, status, now=now, is_retained=is_retained)
                self.manager = manager or self.manager
                return manager is not None

    def forget(self, topic: Topic) -> None:
        """Drop the owner of a retained topic that was cleared."""
        match topic.channel:
            case topics.Channel.CLIENT_STATUS:
                self._count(self.clients.pop((topic.task_id or "", topic.client_mac or ""), None), None)
            case topics.Channel.SERVER_STATUS:
                self.servers.pop(topic.task_id or "", None)
            case topics.Channel.RUN_STATUS:
                self.runs.pop(topic.run_id or "", None)
            case topics.Channel.MANAGER_STATUS:
                self.manager = None
            case _:
                pass

    def expire(self, now: float) -> list[StatusView[ClientStatus]]:
        """Take every owner whose lease has ended as out (`silent`); return the clients among them."""
        if self._listening_since is None:
            return []
        self.servers.update({key: _silenced(view, now) for key, view in self.servers.items() if self._ended(view, now)})
        if self.manager is not None and self._ended(self.manager, now):
            self.manager = _silenced(self.manager, now)
        ended = {key: _silenced(view, now) for key, view in self.clients.items() if self._ended(view, now)}
        for key, view in ended.items():
            self._count(self.clients[key], view)
        self.clients.update(ended)
        return list(ended.values())

    @property
    def num_here(self) -> int:
        """How many clients are not out."""
        return sum(count for (_, presence, _), count in self.counts.items() if presence is not Presence.OUT)

    def client(self, task_id: str, client_mac: str) -> StatusView[ClientStatus] | None:
        """Return what is known of one client."""
        return self.clients.get((task_id, client_mac))

    def of_task(self, task_id: str) -> Iterator[StatusView[ClientStatus]]:
        """Yield the views of a task's clients, by MAC."""
        for key in sorted(key for key in self.clients if key[0] == task_id):
            yield self.clients[key]

    def _count(self, before: StatusView[ClientStatus] | None, after: StatusView[ClientStatus] | None) -> None:
        old = None if before is None else _key_state(before)
        new = None if after is None else _key_state(after)
        if old == new:
            return
        if old is not None:
            self.counts[old] -= 1
            if not self.counts[old]:
                del self.counts[old]
        if new is not None:
            self.counts[new] += 1

    def _ended(self, view: StatusView[Status], now: float) -> bool:
        lease_s = LEASE_HEARTBEATS * (getattr(view.status, "heartbeat_s", None) or self.default_heartbeat_s)
        starts = view.heard_at if self._listening_since is None else max(view.heard_at, self._listening_since)
        return now - starts > lease_s and not view.is_out


def _key_state(view: StatusView[ClientStatus]) -> ClientKeyState:
    return view.status.task_id, view.presence, view.status.status


def facts_of(view: StatusView[ClientStatus]) -> tuple[object, ...]:
    """Return what a heartbeat leaves as it is, to be compared: no time, and no place in an order."""
    status = view.status
    return (
        view.presence,
        status.status,
        status.reason,
        status.instance,
        status.client_name,
        _fields_of(status.run),
        _fields_of(status.last_run),
        _fields_of(status.last_trigger),
        status.gl_model,
    )


def _fields_of(part: CurrentRun | LastRun | LastTrigger | None) -> dict[str, object] | None:
    """Return the fields themselves: dicts are compared in a tenth of the time that pydantic's models take."""
    return None if part is None else vars(part)


def is_idle(view: StatusView[ClientStatus]) -> bool:
    """Return whether a client is here and trains nothing."""
    return not view.is_out and view.status.run is None


def _put(views: dict[Key, StatusView[Status]], key: Key, view: StatusView[Status] | None) -> bool:
    """Keep a view; True when it has something new (a suspected comeback does not count yet)."""
    before = views.get(key)
    if view is not None:
        views[key] = view
    return view is not None and (before is None or view.status is not before.status)


def _silenced(view: StatusView[Status], now: float) -> StatusView[Status]:
    return replace(view, is_silent=True, since=now)


def _fill_in(view: StatusView[Status], older: Status) -> StatusView[Status] | None:
    """A full status that was overtaken by its own will still gives what the will left out; presence stays."""
    if not is_will(view.status) or is_will(older) or (view.snapshot is not None and stamp_of(older) <= view.snapshot):
        return None
    return replace(view, status=_keep_what_a_will_omits(older, view.status), snapshot=stamp_of(older))


def _come_back(view: StatusView[Status], status: Status, *, now: float, is_retained: bool) -> StatusView[Status] | None:
    """An owner that lost its state, its clock, and the broker's memory of it cannot know how high it once stood.

    While its old self is away, live statuses of the new one that rise for a heartbeat are no leftovers.
    """
    if is_retained or status.instance == view.status.instance or not view.is_out or reports_offline(status):
        return None
    seen, stamp = view.comeback, stamp_of(status)
    if seen is None or seen.instance != status.instance:
        return replace(view, comeback=PendingReturn(status.instance, now, stamp))
    if stamp <= seen.stamp:
        return None
    if now - seen.since < (status.heartbeat_s or DEFAULT_HEARTBEAT_S):
        return replace(view, comeback=replace(seen, stamp=stamp))
    return StatusView(status=status, heard_at=now, since=now, is_confirmed=True, snapshot=stamp)


def _keep_what_a_will_omits(before: Status, will: Status) -> Status:
    """What its owner last published of its run still holds after a will, which was frozen at CONNECT."""
    return will.model_copy(update={name: getattr(before, name) for name in _omitted_by_wills(type(before))})


@cache
def _omitted_by_wills(model: type[AnyStatus]) -> tuple[str, ...]:
    """Of each model once: to ask a status for a field that it has not is dearer than all the rest of a will."""
    return tuple(name for name in _OMITTED_BY_WILLS if name in model.model_fields)


_OMITTED_BY_WILLS = (
    "client_name",
    "run",
    "last_run",
    "last_trigger",
    "server_ip",
    "gl_model",
    "agent",
    "run_id",
    "launch",
    "round",
    "num_rounds",
    "metrics",
    "model_path",
    "clients",
    "url",
    "term",
)
