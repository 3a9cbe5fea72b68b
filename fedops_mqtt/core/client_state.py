"""What a client remembers of triggers, stops and runs; `ClientState` is exactly what its journal holds.

Memory is bounded: whatever grows here forgets its oldest.
"""

from dataclasses import dataclass, replace
from typing import Literal

from fedops_mqtt.protocol import (
    Answer,
    KnownCode,
    LastRun,
    LastTrigger,
    Outcome,
    Phase,
    ReasonCode,
    RunId,
    RunStart,
    StartTrigger,
    StopTrigger,
)
from fedops_mqtt.protocol.identity import Text
from fedops_mqtt.protocol.messages import WireModel
from fedops_mqtt.protocol.values import Count

MAX_ANSWERS = 256
"""Answers and stop records that are remembered; a manager fires a few attempts a run and repeats one for seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerReply:
    """One trigger that was answered, and how its training ended if it began."""

    run_id: str
    attempt: int
    launch: int
    answer: Answer
    reason: str | None = None
    reason_code: KnownCode = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRecord:
    """A stop: no attempt of the run up to this one may start any more."""

    run_id: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOutcome:
    """What the active training will have come to once it has ended, unless it finishes first."""

    outcome: Outcome
    reason: str
    detail: str
    reason_code: KnownCode = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveTraining:
    """The training that was accepted and has not ended."""

    run_id: str
    attempt: int
    launch: int
    server_ip: str
    is_local: bool
    """True when a person or program on the device asked for it, without a run id (`POST /start`)."""
    ending: TrainingOutcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientState:
    """What must survive a restart."""

    term: int = 0
    """The highest term of a manager that was received."""
    local_starts: int = 0
    answers: tuple[TriggerReply, ...] = ()
    stop_records: tuple[StopRecord, ...] = ()
    active_training: ActiveTraining | None = None
    last_run: LastRun | None = None
    last_trigger: LastTrigger | None = None
    gl_model: int = 0


def as_last_trigger(reply: TriggerReply) -> LastTrigger:
    """Return an answer as the status has it."""
    return LastTrigger(
        run_id=reply.run_id,
        attempt=reply.attempt,
        launch=reply.launch,
        answer=reply.answer,
        reason=reply.reason,
        reason_code=reply.reason_code,
    )


def find(facts: ClientState, run_id: str, attempt: int) -> TriggerReply | None:
    """Return what was answered to an attempt of a run."""
    for answered in facts.answers:
        if answered.run_id == run_id and answered.attempt == attempt:
            return answered
    return None


def remember(facts: ClientState, answered: TriggerReply) -> ClientState:
    """Return the facts with an answer in them, the oldest (rejections first) forgotten where there are too many."""
    others = [a for a in facts.answers if (a.run_id, a.attempt) != (answered.run_id, answered.attempt)]
    answers = [*others, answered]
    if len(answers) > MAX_ANSWERS:
        rejected = (a for a in answers if a.answer is Answer.REJECTED)
        answers.remove(next(rejected, answers[0]))
    return replace(facts, answers=tuple(answers))


def record_stop(facts: ClientState, run_id: str, attempt: int) -> ClientState:
    """Return the facts with a stop record for a run up to an attempt."""
    attempt = max([attempt, *(t.attempt for t in facts.stop_records if t.run_id == run_id)])
    others = [t for t in facts.stop_records if t.run_id != run_id]
    stones = [*others, StopRecord(run_id=run_id, attempt=attempt)]
    return replace(facts, stop_records=tuple(stones[-MAX_ANSWERS:]))


def is_stopped(facts: ClientState, run_id: str, attempt: int) -> bool:
    """Return whether a stop was received that covers an attempt of a run."""
    return any(t.run_id == run_id and attempt <= t.attempt for t in facts.stop_records)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalStart:
    """Somebody on this device asked for a training at a server (`POST /start`)."""

    server_ip: str
    gl_model: int | None = None
    """Number of the global model as a FedOps client manager gives it; None: as the last start gave it."""


class PhaseReport(WireModel):
    """The training process reports where it is; `run_id` is what the server calls the run, once that is known."""

    report: Literal["phase"] = "phase"
    phase: Phase
    round: Count = 0
    run_id: RunId | None = None
    detail: Text | None = None
    """What a phase that takes long is about, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnded:
    """The active training has ended, whatever its run and attempt are called by then: there is one at a time.

    `outcome` is None when the run was over before it could join, or never began.
    """

    outcome: Outcome | None
    reason: str | None = None
    reason_code: ReasonCode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownRequested:
    """The daemon is about to end: nothing new is started, what trains is interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutDown:
    """The next status is the last; what still trained is interrupted."""

    reason: str


Event = StartTrigger | StopTrigger | LocalStart | PhaseReport | TrainingEnded | ShutdownRequested | ShutDown


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMoved:
    """Notify the training process that its server is somewhere else now."""

    server_ip: str
    launch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTraining:
    """End the training process."""

    reason: str
    reason_code: ReasonCode | None = None


Action = RunStart | ServerMoved | StopTraining
"""What the daemon does next; a `RunStart`, often the trigger itself, starts a training process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartDecision:
    """The answer to a start."""

    answer: Answer
    reason: str | None = None
    reason_code: ReasonCode | None = None
