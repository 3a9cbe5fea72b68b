"""One run's life as a value: what happened is applied, nothing is decided here (see `run_plan`) and nothing is done.

Times are the manager's own clock in seconds; a device's clock never enters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, assert_never

from fedops_mqtt.core.fleet import View
from fedops_mqtt.protocol import (
    Answer,
    ClientStatus,
    LastRun,
    MemberCondition,
    Outcome,
    Phase,
    RunCondition,
    RunInHand,
    RunOutcome,
    ServerClient,
    ServerCondition,
    ServerStatus,
)

INTERRUPTED = "interrupted"
"""Reason of a training whose process was lost with its daemon: the client may be asked again."""

BUSY = "busy"
"""Reason of a rejection that ends by itself: the client was training another run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """How long each part of a run may take, s; see `settings.RunLimits`."""

    trigger_answer_s: float = 30.0
    trigger_retry_s: float = 5.0
    server_start_s: float = 60.0
    join_s: float = 120.0
    run_s: float = 24 * 3600.0
    close_grace_s: float = 10.0
    max_launches: int = 3
    max_attempts: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What was asked for. `clients`: None takes every client of the task that is idle."""

    run_id: str
    task_id: str
    num_rounds: int
    min_clients: int
    clients: tuple[str, ...] | None = None
    join: Literal["invited", "open"] = "invited"
    is_adopted: bool = False
    limits: RunLimits = field(default_factory=RunLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One client in the run."""

    status: MemberCondition = MemberCondition.CHOSEN
    attempt: int = 0
    instance: str | None = None
    """The daemon the current attempt is meant for."""
    launch: int = 0
    """Launch of the server that the last firing named."""
    reason: str | None = None
    first_fired_at: float | None = None
    fired_at: float | None = None
    training_at: float | None = None
    """When its training process was first seen to have joined the server."""
    lost_at: float | None = None
    stop_said_at: float | None = None
    phase: Phase | None = None
    round: int = 0

    @property
    def has_ended(self) -> bool:
        """True when nothing more is expected of this client in this run."""
        return self.status in _ENDED

    @property
    def may_count(self) -> bool:
        """True while this client counts for the quorum, or has counted to its end."""
        return self.status not in _UNCOUNTED


_ENDED = frozenset(
    {MemberCondition.FINISHED, MemberCondition.FAILED, MemberCondition.REJECTED, MemberCondition.STOPPED}
)
_UNCOUNTED = frozenset({MemberCondition.FAILED, MemberCondition.REJECTED, MemberCondition.STOPPED})
_HAS_JOINED = frozenset(Phase) - {Phase.STARTING, Phase.JOINING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it stands."""

    spec: RunSpec
    created_at: float
    status: RunCondition = RunCondition.PENDING
    outcome: RunOutcome | None = None
    reason: str | None = None
    launch: int = 0
    launched_at: float | None = None
    exited_at: float | None = None
    exit_reason: str | None = None
    is_unreachable: bool = False
    server: ServerStatus | None = None
    ready_at: float | None = None
    stop_reason: str | None = None
    ended_at: float | None = None
    members: Mapping[str, Member] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.spec.run_id

    @property
    def has_ended(self) -> bool:
        """True once the run has an outcome."""
        return self.outcome is not None

    @property
    def server_ip(self) -> str | None:
        """Where the server of the current launch can be reached, once it said so."""
        if self.server is None or self.server.launch != self.launch or self.server.status not in _SERVING:
            return None
        return self.server.server_ip

    def count(self, *statuses: MemberCondition) -> int:
        """Return how many members stand at one of these."""
        return sum(member.status in statuses for member in self.members.values())


_SERVING = frozenset({ServerCondition.READY, ServerCondition.RUNNING})


@dataclass(frozen=True, slots=True)
class ServerLaunched:
    """The launcher is about to start (journaled before it does) the server's process."""

    launch: int


@dataclass(frozen=True, slots=True)
class ServerExited:
    """The server's process of one launch is gone."""

    launch: int
    reason: str


@dataclass(frozen=True, slots=True)
class ServerUnreachable:
    """The server is silent on the bus and its line does not answer."""

    launch: int


@dataclass(frozen=True, slots=True)
class ClientChosen:
    """A client belongs to the run from now on."""

    client_mac: str


@dataclass(frozen=True, slots=True)
class TriggerFired:
    """A start trigger is about to be published (journaled before it is)."""

    client_mac: str
    attempt: int
    instance: str
    launch: int


@dataclass(frozen=True, slots=True)
class StopSaid:
    """A stop trigger was published."""

    client_mac: str


@dataclass(frozen=True, slots=True)
class MemberGaveUp:
    """A client is not waited for any longer."""

    client_mac: str
    status: MemberCondition
    reason: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody asked for the run's end."""

    reason: str


@dataclass(frozen=True, slots=True)
class RunClosed:
    """The run has its outcome."""

    outcome: RunOutcome
    reason: str


RunEvent = (
    ServerStatus
    | View[ClientStatus]
    | ServerLaunched
    | ServerExited
    | ServerUnreachable
    | ClientChosen
    | TriggerFired
    | StopSaid
    | MemberGaveUp
    | StopRequested
    | RunClosed
)


def apply(run: Run, event: RunEvent, now: float) -> Run:
    """Return the run after one event; applying the same event again changes nothing more."""
    match event:
        case ServerStatus():
            return _apply_server(run, event, now)
        case View():
            return _apply_client(run, event, now)
        case ServerLaunched() | ServerExited() | ServerUnreachable():
            return _apply_process(run, event, now)
        case ClientChosen() | TriggerFired() | StopSaid() | MemberGaveUp():
            return _apply_own_word(run, event, now)
        case StopRequested(reason=reason):
            return run if run.has_ended or run.stop_reason else replace(run, stop_reason=reason)
        case RunClosed(outcome=outcome, reason=reason):
            return run if run.has_ended else _close(run, outcome, reason, now)
    assert_never(event)


def _close(run: Run, outcome: RunOutcome, reason: str, now: float) -> Run:
    return replace(run, status=RunCondition.FINISHED, outcome=outcome, reason=reason, ended_at=now)


def _apply_process(run: Run, event: ServerLaunched | ServerExited | ServerUnreachable, now: float) -> Run:
    match event:
        case ServerLaunched(launch=launch) if launch > run.launch and not run.has_ended:
            return replace(
                run,
                status=RunCondition.STARTING,
                launch=launch,
                launched_at=now,
                exited_at=None,
                exit_reason=None,
                is_unreachable=False,
            )
        case ServerExited(launch=launch, reason=reason) if launch == run.launch and run.exited_at is None:
            return replace(run, exited_at=now, exit_reason=reason)
        case ServerUnreachable(launch=launch) if launch == run.launch:
            return replace(run, is_unreachable=True)
    return run


def _apply_own_word(run: Run, event: ClientChosen | TriggerFired | StopSaid | MemberGaveUp, now: float) -> Run:
    member = run.members.get(event.client_mac)
    match event:
        case ClientChosen(client_mac=mac):
            return run if member else _with_member(run, mac, Member())
        case _ if member is None:
            return run
        case TriggerFired(client_mac=mac, attempt=attempt, instance=instance, launch=launch):
            return _with_member(run, mac, _fired(member, attempt, instance, launch, now))
        case StopSaid(client_mac=mac):
            return _with_member(run, mac, replace(member, stop_said_at=now))
        case MemberGaveUp(client_mac=mac, status=status, reason=reason):
            return run if member.has_ended else _with_member(run, mac, _moved(member, status, reason, now))
    assert_never(event)


def _fired(member: Member, attempt: int, instance: str, launch: int, now: float) -> Member:
    if attempt < member.attempt:
        return member
    is_new = attempt > member.attempt
    return replace(
        member,
        status=MemberCondition.TRIGGERED if is_new else member.status,
        attempt=attempt,
        instance=instance,
        launch=max(launch, member.launch),
        reason=None if is_new else member.reason,
        first_fired_at=now if is_new else member.first_fired_at,
        fired_at=now,
    )


def _apply_server(run: Run, word: ServerStatus, now: float) -> Run:
    if word.task_id != run.spec.task_id or word.run_id != run.run_id or word.launch < run.launch:
        return run
    if word.launch > run.launch and not run.spec.is_adopted:
        return run
    run = replace(run, server=word, launch=word.launch, is_unreachable=False)
    if word.status in _SERVING and not run.has_ended:
        run = replace(run, status=RunCondition.RUNNING, ready_at=run.ready_at if run.ready_at is not None else now)
    members = dict(run.members)
    for mac, said in word.clients.items():
        if mac in members:
            members[mac] = _server_says(members[mac], said, now)
    return replace(run, members=MappingProxyType(members))


def _server_says(member: Member, said: ServerClient, now: float) -> Member:
    """The server's word on who is in the run; a word about an earlier attempt is history."""
    if said.attempt != member.attempt or member.has_ended:
        return member
    joined = replace(_moved(member, said.status, said.reason, now), phase=said.phase, round=said.round)
    return _seen_training(joined, now) if said.status is MemberCondition.TRAINING else joined


def _moved(member: Member, status: MemberCondition, reason: str | None, now: float) -> Member:
    """The member at another status; how long it has been lost counts from the first word of it."""
    if status is not MemberCondition.LOST:
        return replace(member, status=status, reason=reason, lost_at=None)
    return replace(member, status=status, reason=reason, lost_at=now if member.lost_at is None else member.lost_at)


def _seen_training(member: Member, now: float) -> Member:
    return member if member.training_at is not None else replace(member, training_at=now)


def _apply_client(run: Run, view: View[ClientStatus], now: float) -> Run:
    mac = view.status.client_mac
    member = run.members.get(mac)
    if member is None or view.status.task_id != run.spec.task_id or member.attempt == 0:
        return run
    return _with_member(run, mac, _client_says(run, member, view, now))


def _client_says(run: Run, member: Member, view: View[ClientStatus], now: float) -> Member:
    said = view.status
    if said.last_run and (said.last_run.run_id, said.last_run.attempt) == (run.run_id, member.attempt):
        return _ended(member, said.last_run, now)
    if member.has_ended:
        return member
    if view.is_out:
        return _client_out(run, member, view, now)
    answer = said.last_trigger
    if answer and (answer.run_id, answer.attempt) == (run.run_id, member.attempt) and answer.answer is Answer.REJECTED:
        return _rejected(member, answer.reason, now)
    hand = said.run
    if hand is not None and (hand.run_id, hand.attempt) == (run.run_id, member.attempt):
        return _in_training(run, member, view.status.client_mac, hand, now)
    return member


def _in_training(run: Run, member: Member, mac: str, hand: RunInHand, now: float) -> Member:
    """A client whose line is broken may still think that it trains: there the server knows better."""
    if not _server_misses(run, mac, member):
        member = _moved(member, MemberCondition.TRAINING, None, now)
    member = replace(member, phase=hand.phase, round=hand.round)
    return _seen_training(member, now) if hand.phase in _HAS_JOINED else member


def _server_misses(run: Run, mac: str, member: Member) -> bool:
    if run.server is None or run.server_ip is None:
        return False
    said = run.server.clients.get(mac)
    return said is not None and said.attempt == member.attempt and said.status is MemberCondition.LOST


def _ended(member: Member, last: LastRun, now: float) -> Member:
    """A client's own word on its outcome outweighs what the server guessed from a broken line."""
    if last.outcome is Outcome.FAILED and (last.reason or "").startswith(INTERRUPTED):
        return member if member.has_ended else _moved(member, MemberCondition.LOST, last.reason, now)
    return replace(member, status=MemberCondition(last.outcome.value), reason=last.reason, phase=None)


def _rejected(member: Member, reason: str | None, now: float) -> Member:
    status = MemberCondition.LOST if (reason or "").startswith(BUSY) else MemberCondition.REJECTED
    return _moved(member, status, reason, now)


def _client_out(run: Run, member: Member, view: View[ClientStatus], now: float) -> Member:
    """While the server lives, who is in the run is what the server reports; before that the bus is all there is."""
    is_on_the_line = run.server_ip is not None and member.training_at is not None
    if is_on_the_line and member.status is MemberCondition.TRAINING:
        return member
    return _moved(member, MemberCondition.LOST, view.out_reason, now)


def _with_member(run: Run, mac: str, member: Member) -> Run:
    return replace(run, members=MappingProxyType({**run.members, mac: member}))
