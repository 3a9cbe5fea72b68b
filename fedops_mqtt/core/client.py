"""The client machine: which start a device takes up, what it answers, and which status it publishes.

Pure: an event goes in, the next client and at most one action come out; `ClientState` is on disk before the action is
carried out or the status is published, or a crash in between could start one training twice.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, assert_never

from fedops_mqtt.core.client_state import (
    Action,
    ActiveTraining,
    ClientState,
    Event,
    LocalStart,
    PhaseReport,
    ServerMoved,
    ShutDown,
    ShutdownRequested,
    StartDecision,
    StopTraining,
    TrainingEnded,
    TrainingOutcome,
    TriggerReply,
    as_last_trigger,
    find,
    is_stopped,
    record_stop,
    remember,
)
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.protocol import (
    Answer,
    ClientCondition,
    ClientStatus,
    CurrentRun,
    LastRun,
    Outcome,
    Phase,
    ReasonCode,
    RunStart,
    StartTrigger,
    StopTrigger,
    clip,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this daemon is, for its whole life."""

    task_id: str
    client_mac: str
    client_name: str
    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """The whole client: facts, and what a restart may forget."""

    identity: Identity
    facts: ClientState = field(default_factory=ClientState)
    condition: ClientCondition = ClientCondition.ONLINE
    reason: str | None = None
    phase: Phase = Phase.STARTING
    round: int = 0
    server_ip: str | None = None
    is_shutting_down: bool = False

    @property
    def run(self) -> CurrentRun | None:
        """The current run as the status carries it."""
        mine = self.facts.active_training
        if mine is None:
            return None
        return CurrentRun(
            run_id=mine.run_id, attempt=mine.attempt, launch=mine.launch, phase=self.phase, round=self.round
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What an event led to."""

    client: Client
    action: Action | None = None
    decision: StartDecision | None = None


def apply(client: Client, event: Event, *, app_refusal: StartDecision | None = None) -> Step:
    """Return the client after `event`, what is to be done, and for a start the answer.

    `app_refusal` is what the device's rule about apps has against a start; where nothing else is, that is the answer.
    """
    match event:
        case StartTrigger():
            return _take_trigger(client, event, app_refusal)
        case StopTrigger():
            return _take_stop(client, event)
        case LocalStart():
            return _take_local_start(client, event, app_refusal)
        case PhaseReport():
            return Step(client=_progress(client, event))
        case TrainingEnded():
            return Step(client=_end(client, event))
        case ShutdownRequested():
            return _leave(client)
        case ShutDown():
            client = replace(_interrupted(client), is_shutting_down=True)
            return Step(client=replace(client, condition=ClientCondition.CLIENT_OUT, reason=event.reason))
        case _:
            assert_never(event)


def restore(identity: Identity, facts: ClientState) -> Client:
    """Return a new daemon's client; a training that was active when the last daemon died is interrupted."""
    client = _interrupted(Client(identity=identity, facts=facts))
    return replace(client, condition=ClientCondition.ONLINE, reason=None)


# Starts


def _take_trigger(client: Client, trigger: StartTrigger, app_refusal: StartDecision | None) -> Step:
    misfit = _mismatch(client.identity, trigger.task_id, trigger.client_mac)
    if misfit:
        return answer(client, trigger, _rejection(misfit))
    if _is_relaunch(client, trigger):
        return _redirect(client, trigger)
    known = find(client.facts, trigger.run_id, trigger.attempt)
    if known:
        decision = StartDecision(answer=known.answer, reason=known.reason, reason_code=known.reason_code)
        return answer(client, trigger, decision, launch=known.launch)
    unwanted = _unwanted(client, trigger)
    if unwanted:
        return answer(client, trigger, _rejection(unwanted))
    refused = _refusal(client, trigger) or app_refusal
    if refused:
        return answer(client, trigger, refused, is_remembered=True)
    return _accept(client, trigger)


def _rejection(reason: str, code: ReasonCode | None = None) -> StartDecision:
    return StartDecision(answer=Answer.REJECTED, reason=reason, reason_code=code)


def _mismatch(identity: Identity, task_id: str, client_mac: str) -> str | None:
    if client_mac != identity.client_mac:
        return f"client_mac is {client_mac}, this client is {identity.client_mac}"
    if task_id != identity.task_id:
        return f"task_id is {task_id}, this client serves {identity.task_id}"
    return None


def _unwanted(client: Client, trigger: StartTrigger) -> str | None:
    """Why a trigger is not for this daemon at all; it would be refused for the same reason when it comes again."""
    if trigger.instance not in (None, client.identity.instance):
        return f"meant for instance {trigger.instance}, this is {client.identity.instance}"
    if trigger.term < client.facts.term:
        return f"term {trigger.term} is over, {client.facts.term} is known"
    return None


def _refusal(client: Client, trigger: StartTrigger) -> StartDecision | None:
    """Why a trigger that is for this daemon is turned down, for good."""
    if is_stopped(client.facts, trigger.run_id, trigger.attempt):
        return _rejection(STOPPED)
    for earlier in client.facts.answers:
        if earlier.run_id == trigger.run_id and earlier.attempt > trigger.attempt:
            return _rejection(f"attempt {trigger.attempt} is superseded by {earlier.attempt}")
        if earlier.run_id == trigger.run_id and earlier.outcome is Outcome.FINISHED:
            return _rejection(f"run is finished here (attempt {earlier.attempt})")
    return _busy(client)


def _busy(client: Client) -> StartDecision | None:
    mine = client.facts.active_training
    if mine:
        return _rejection(f"busy with run {mine.run_id}, attempt {mine.attempt}", ReasonCode.BUSY)
    return _rejection("shutting down", ReasonCode.SHUTTING_DOWN) if client.is_shutting_down else None


def _accept(client: Client, trigger: StartTrigger) -> Step:
    facts = client.facts
    mine = ActiveTraining(
        run_id=trigger.run_id,
        attempt=trigger.attempt,
        launch=trigger.launch,
        server_ip=trigger.server_ip,
        is_local=False,
    )
    facts = replace(facts, active_training=mine, term=max(facts.term, trigger.term), gl_model=trigger.gl_model)
    step = answer(replace(client, facts=facts), trigger, StartDecision(answer=Answer.ACCEPTED), is_remembered=True)
    return replace(step, client=_started(step.client, trigger.server_ip), action=trigger)


def _started(client: Client, server_ip: str) -> Client:
    return replace(
        client,
        condition=ClientCondition.TRAIN_STARTED,
        reason=None,
        phase=Phase.STARTING,
        round=0,
        server_ip=server_ip,
    )


def answer(
    client: Client,
    trigger: StartTrigger,
    decision: StartDecision,
    *,
    launch: int | None = None,
    is_remembered: bool = False,
) -> Step:
    """Return the step that answers a trigger; a remembered answer is given again when the trigger comes again."""
    launch = trigger.launch if launch is None else launch
    answered = TriggerReply(
        run_id=trigger.run_id,
        attempt=trigger.attempt,
        launch=launch,
        answer=decision.answer,
        reason=decision.reason,
        reason_code=decision.reason_code,
    )
    facts = replace(client.facts, last_trigger=as_last_trigger(answered))
    if is_remembered:
        facts = remember(replace(facts, term=max(facts.term, trigger.term)), answered)
    return Step(client=replace(client, facts=facts), decision=decision)


def _is_relaunch(client: Client, trigger: StartTrigger) -> bool:
    mine = client.facts.active_training
    return (
        mine is not None
        and mine.ending is None
        and mine.run_id == trigger.run_id
        and mine.attempt <= trigger.attempt
        and mine.launch < trigger.launch
        and _unwanted(client, trigger) is None
        and not is_stopped(client.facts, trigger.run_id, trigger.attempt)
    )


def _redirect(client: Client, trigger: StartTrigger) -> Step:
    mine = client.facts.active_training
    assert mine is not None
    mine = replace(mine, attempt=trigger.attempt, launch=trigger.launch, server_ip=trigger.server_ip)
    facts = replace(client.facts, active_training=mine, gl_model=trigger.gl_model)
    client = replace(client, facts=facts, server_ip=trigger.server_ip)
    step = answer(client, trigger, StartDecision(answer=Answer.ACCEPTED), is_remembered=True)
    return replace(step, action=ServerMoved(server_ip=trigger.server_ip, launch=trigger.launch))


def _take_local_start(client: Client, start: LocalStart, app_refusal: StartDecision | None) -> Step:
    mine = client.facts.active_training
    if mine and mine.server_ip == start.server_ip and mine.ending is None:
        return Step(
            client=client, decision=StartDecision(answer=Answer.ACCEPTED, reason="already training for this server")
        )
    refused = _busy(client) or app_refusal
    if refused:
        return Step(client=client, decision=refused)
    return _accept_local(client, start)


def _accept_local(client: Client, start: LocalStart) -> Step:
    count = client.facts.local_starts + 1
    mine = ActiveTraining(run_id=f"local-{count}", attempt=count, launch=0, server_ip=start.server_ip, is_local=True)
    gl_model = client.facts.gl_model if start.gl_model is None else start.gl_model
    facts = replace(client.facts, local_starts=count, active_training=mine, gl_model=gl_model)
    return Step(
        client=_started(replace(client, facts=facts), start.server_ip),
        decision=StartDecision(answer=Answer.ACCEPTED),
        action=RunStart(run_id=mine.run_id, attempt=count, launch=0, server_ip=start.server_ip, gl_model=gl_model),
    )


# Stops and ends

STOPPED = "stopped"
"""Reason of what was stopped, and of a start that its stop has overtaken."""


def _take_stop(client: Client, stop: StopTrigger) -> Step:
    if _mismatch(client.identity, stop.task_id, stop.client_mac) or stop.term < client.facts.term:
        return Step(client=client)
    facts = replace(record_stop(client.facts, stop.run_id, stop.attempt), term=stop.term)
    client = replace(client, facts=facts)
    mine = facts.active_training
    if mine is None or mine.ending or mine.run_id != stop.run_id or mine.attempt > stop.attempt:
        return Step(client=client)
    ending = TrainingOutcome(outcome=Outcome.STOPPED, reason=STOPPED, detail=stop.reason or STOPPED)
    return _end_by(client, mine, ending)


def _leave(client: Client) -> Step:
    client = replace(client, is_shutting_down=True)
    mine = client.facts.active_training
    if mine is None or mine.ending:
        return Step(client=client)
    return _end_by(client, mine, _INTERRUPTION)


_INTERRUPTION = TrainingOutcome(
    outcome=Outcome.FAILED,
    reason="interrupted",
    detail="interrupted: the daemon was ended while it trained",
    reason_code=ReasonCode.INTERRUPTED,
)


def _interrupted(client: Client) -> Client:
    """Return the client with its training, if there is one, ended as what was to become of it, else interrupted."""
    mine = client.facts.active_training
    if mine is None:
        return client
    if mine.ending is None:
        client = _end_by(client, mine, _INTERRUPTION).client
    return _end(client, TrainingEnded(outcome=Outcome.FAILED))


def _end_by(client: Client, mine: ActiveTraining, ending: TrainingOutcome) -> Step:
    facts = replace(client.facts, active_training=replace(mine, ending=ending))
    return Step(
        client=replace(client, facts=facts), action=StopTraining(reason=ending.detail, reason_code=ending.reason_code)
    )


def _progress(client: Client, event: PhaseReport) -> Client:
    mine = client.facts.active_training
    if mine is None:
        return client
    facts = client.facts
    if mine.is_local and event.run_id:
        facts = replace(facts, active_training=replace(mine, run_id=event.run_id))
    return replace(client, facts=facts, phase=event.phase, round=event.round, reason=event.detail)


def _end(client: Client, event: TrainingEnded) -> Client:
    mine = client.facts.active_training
    if mine is None:
        return client
    client = replace(client, phase=Phase.STARTING, round=0)
    if event.outcome is None and mine.ending is None:
        return _end_unjoined(client, mine, clip(event.reason), event.reason_code)
    ending = mine.ending if mine.ending and event.outcome is not Outcome.FINISHED else None
    outcome = ending.outcome if ending else event.outcome or Outcome.FAILED
    last_run = LastRun(
        run_id=mine.run_id,
        attempt=mine.attempt,
        outcome=outcome,
        reason=clip(ending.detail if ending else event.reason),
        reason_code=ending.reason_code if ending else event.reason_code,
    )
    facts = replace(client.facts, active_training=None, last_run=last_run)
    known = find(facts, mine.run_id, mine.attempt)
    if known:
        facts = remember(facts, replace(known, outcome=outcome))
    is_good = outcome is Outcome.FINISHED
    return replace(
        client,
        facts=facts,
        condition=ClientCondition.TRAIN_FINISHED if is_good else ClientCondition.TRAIN_FAILED,
        reason=ending.reason if ending else last_run.reason,
    )


def _end_unjoined(client: Client, mine: ActiveTraining, reason: str | None, code: ReasonCode | None) -> Client:
    """The run was over before this client joined it, or its app is refused: its start is rejected after all."""
    facts = replace(client.facts, active_training=None)
    known = find(facts, mine.run_id, mine.attempt)
    if known:
        known = replace(known, answer=Answer.REJECTED, reason=reason, reason_code=code, launch=mine.launch)
        facts = replace(remember(facts, known), last_trigger=as_last_trigger(known))
    return replace(client, facts=facts, condition=ClientCondition.ONLINE, reason=None)


LOST = "lost"


def snapshot(
    client: Client, stamp: Stamp, *, at: datetime, heartbeat_s: float, agent: Mapping[str, str]
) -> ClientStatus:
    """Return the whole status of a client."""
    return ClientStatus(
        **_signed(client.identity, stamp, at, heartbeat_s),
        status=client.condition,
        reason=client.reason,
        run=client.run,
        last_run=client.facts.last_run,
        last_trigger=client.facts.last_trigger,
        server_ip=client.server_ip,
        gl_model=client.facts.gl_model,
        agent=dict(agent),
    )


def last_will(identity: Identity, stamp: Stamp, *, at: datetime, heartbeat_s: float) -> ClientStatus:
    """Return what the broker publishes for a client that dies: its identity, and that it is lost."""
    signed = _signed(identity, stamp, at, heartbeat_s)
    return ClientStatus(**signed, status=ClientCondition.CLIENT_OUT, reason=LOST)


def _signed(identity: Identity, stamp: Stamp, at: datetime, heartbeat_s: float) -> dict[str, Any]:
    """Return what every status of a client carries of its owner."""
    return {**asdict(identity), **stamp._asdict(), "at": at, "heartbeat_s": heartbeat_s}
