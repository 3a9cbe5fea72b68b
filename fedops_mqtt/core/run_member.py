"""One client in a run as a value, and what each report about it makes of it; see `run` for where they come from.

A report about an attempt that is not in force is history, and a member that has ended stays as it is.
"""

from dataclasses import dataclass, replace

from fedops_mqtt.core.fleet import StatusView
from fedops_mqtt.protocol import (
    ClientStatus,
    KnownCode,
    LastTrigger,
    MemberCondition,
    Phase,
    ReasonCode,
    RunOutcome,
    ServerClient,
    ServerStatus,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One client in the run."""

    status: MemberCondition = MemberCondition.CHOSEN
    attempt: int = 0
    """The firing in force: the last one, or the one that the client reports to train."""
    last_attempt: int = 0
    """The highest that was fired; 0 for a client that came by itself to an open server."""
    instance: str | None = None
    """The daemon the current attempt is meant for."""
    launch: int = 0
    """Launch of the server that the last firing named."""
    reason: str | None = None
    reason_code: KnownCode = None
    """Of `reason`, absent in a journal of a program that had none."""
    first_fired_at: float | None = None
    fired_at: float | None = None
    training_at: float | None = None
    """When its training process was first seen to have joined the server."""
    lost_at: float | None = None
    stop_sent_at: float | None = None
    phase: Phase | None = None
    round: int = 0

    @property
    def has_ended(self) -> bool:
        """True when nothing more is expected of this client in this run."""
        return self.status in _ENDED

    @property
    def may_count(self) -> bool:
        """True while this client counts for the quorum, or has counted to its end.

        Who was stopped counts: only the server stops clients of an open run, as it ends, and it will publish why.
        """
        return self.status not in _UNCOUNTED


_ENDED = frozenset(
    {MemberCondition.FINISHED, MemberCondition.FAILED, MemberCondition.REJECTED, MemberCondition.STOPPED}
)
_UNCOUNTED = frozenset({MemberCondition.FAILED, MemberCondition.REJECTED})
BAD_ENDS = _UNCOUNTED | {MemberCondition.STOPPED}


def fired(member: Member, attempt: int, instance: str, launch: int, now: float) -> Member:
    """A trigger went out to it; the same attempt again asks nothing new of a client that is there."""
    if attempt < member.attempt or member.has_ended:
        return member
    is_new = attempt > member.last_attempt
    asked = replace(member, instance=instance, launch=max(launch, member.launch), fired_at=now)
    if is_new:
        asked = replace(asked, attempt=attempt, last_attempt=attempt, first_fired_at=now, training_at=None)
    if is_new or member.status is MemberCondition.LOST:
        asked = moved(asked, MemberCondition.TRIGGERED, None, now)
    return asked


REPORTED_BY_SERVERS = frozenset(
    {
        MemberCondition.TRAINING,
        MemberCondition.FINISHED,
        MemberCondition.FAILED,
        MemberCondition.LOST,
        MemberCondition.STOPPED,
    }
)
"""Conditions of a client that a server reports; the rest is the manager's own."""


def uninvited(client: ServerClient) -> Member:
    """A client that came to an open server without a trigger (`POST /start`)."""
    return Member(attempt=client.attempt)


def server_reports(member: Member, client: ServerClient, now: float) -> Member:
    """Apply the server's report on who is in the run; a report about another attempt is history.

    What it makes of an interruption, which it may receive before the bus does or guess from a broken line, is no end.
    """
    if client.attempt != member.attempt or member.has_ended:
        return member
    interrupted = next((each for each in (member, client) if each.reason_code is ReasonCode.INTERRUPTED), None)
    if interrupted is not None and client.status in BAD_ENDS:
        return moved(member, MemberCondition.LOST, interrupted.reason, now, interrupted.reason_code)
    joined = moved(member, client.status, client.reason, now, client.reason_code)
    joined = replace(joined, phase=client.phase, round=client.round)
    return seen_training(joined, now) if client.status is MemberCondition.TRAINING else joined


def moved(
    member: Member, status: MemberCondition, reason: str | None, now: float, code: ReasonCode | None = None
) -> Member:
    """The member at another status; how long it has been lost counts from the first report of it."""
    lost_at = None
    if status is MemberCondition.LOST:
        lost_at = now if member.lost_at is None else member.lost_at
    return replace(member, status=status, reason=reason, reason_code=code, lost_at=lost_at)


def seen_training(member: Member, now: float) -> Member:
    """The member, with the first time that it was seen to train."""
    return member if member.training_at is not None else replace(member, training_at=now)


def replaced(member: Member, now: float) -> Member:
    """Another daemon is there now: the firing in force was not meant for it, whatever it answers to it."""
    if member.instance is None or member.status not in _OPEN_FOR_LOSS:
        return member
    return moved(member, MemberCondition.LOST, "its daemon was started anew", now)


_OPEN_FOR_LOSS = frozenset({MemberCondition.TRIGGERED, MemberCondition.TRAINING})


_PASSING = frozenset({ReasonCode.BUSY, ReasonCode.SHUTTING_DOWN})
"""Codes of a rejection that ends by itself: the client may be asked again."""


def rejected(member: Member, answer: LastTrigger, now: float) -> Member:
    """It turned the trigger down: for good, or for as long as it is busy."""
    status = MemberCondition.LOST if answer.reason_code in _PASSING else MemberCondition.REJECTED
    return moved(member, status, answer.reason, now, answer.reason_code)


@dataclass(frozen=True, slots=True)
class ServerLaunched:
    """The launcher is about to start (journaled before it does) the server's process."""

    launch: int


@dataclass(frozen=True, slots=True)
class ServerExited:
    """The server's process of one launch has ended."""

    launch: int
    reason: str


@dataclass(frozen=True, slots=True)
class ServerUnreachable:
    """The server is silent on the bus and its line does not answer."""

    launch: int


@dataclass(frozen=True, slots=True)
class ServerHostLost:
    """The host of the server cannot be asked about it, and why; None: it answers again. The server may be alive."""

    launch: int
    problem: str | None


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
class StopSent:
    """A stop trigger is about to be published."""

    client_mac: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class MemberGaveUp:
    """A client is not waited for any longer."""

    client_mac: str
    status: MemberCondition
    reason: str


@dataclass(frozen=True, slots=True)
class RunWaits:
    """What an open run waits for, for people; None: for nothing."""

    reason: str | None


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
    | StatusView[ClientStatus]
    | ServerLaunched
    | ServerExited
    | ServerUnreachable
    | ServerHostLost
    | ClientChosen
    | TriggerFired
    | StopSent
    | MemberGaveUp
    | RunWaits
    | StopRequested
    | RunClosed
)
