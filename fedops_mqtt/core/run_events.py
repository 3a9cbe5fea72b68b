"""What can happen to a run, beside a word of its server or of a client; each is journaled before it is acted upon."""

from dataclasses import dataclass

from fedops_mqtt.core.fleet import StatusView
from fedops_mqtt.protocol import ClientStatus, MemberCondition, RunOutcome, ServerStatus


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
class StopSent:
    """A stop trigger was published."""

    client_mac: str


@dataclass(frozen=True, slots=True)
class MemberGaveUp:
    """A client is not waited for any longer."""

    client_mac: str
    status: MemberCondition
    reason: str


@dataclass(frozen=True, slots=True)
class RunWaits:
    """What an open run waits for, in words for people; None: for nothing."""

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
    | ClientChosen
    | TriggerFired
    | StopSent
    | MemberGaveUp
    | RunWaits
    | StopRequested
    | RunClosed
)
