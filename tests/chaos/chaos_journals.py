"""What the journals must agree on: each client's, the manager's, and the models that were saved.

Every function yields sentences about what does not hold; nothing here looks at the bus or at processes.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import create_engine, select, text

from fedops_mqtt.core.client_state import ClientState, TriggerReply
from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_member import Member
from fedops_mqtt.manager import tables
from fedops_mqtt.manager.run_record import load_run
from fedops_mqtt.protocol import Answer, Outcome, RunOutcome
from fedops_mqtt.store.versions import ModelStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event of the manager's journal."""

    id: int
    kind: str
    run_id: str
    client_mac: str | None
    detail: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerJournal:
    """What the manager wrote down: its runs, oldest first, and what happened in them, in order."""

    runs: tuple[Run, ...]
    events: tuple[Told, ...]

    def of_kind(self, kind: str) -> Iterator[Told]:
        return (event for event in self.events if event.kind == kind)


def read_manager_journal(url: str) -> ManagerJournal:
    """Return the journal in a database as it is on disk now."""
    engine = create_engine(url)
    with engine.connect() as connection:
        members: dict[str, dict[str, str]] = defaultdict(dict)
        for run_id, mac, state in connection.execute(text("SELECT run_id, client_mac, state FROM members")):
            members[run_id][mac] = state
        rows = connection.execute(text("SELECT run_id, state FROM runs ORDER BY created_at")).all()
        of_runs = select(tables.events).where(tables.events.c.run_id.is_not(None)).order_by(tables.events.c.id)
        events = connection.execute(of_runs).all()
    engine.dispose()
    runs = tuple(load_run(state, members[run_id]) for run_id, state in rows)
    told = tuple(
        Told(id=each.id, kind=each.kind, run_id=each.run_id, client_mac=each.client_mac, detail=each.detail)
        for each in events
    )
    return ManagerJournal(runs=runs, events=told)


# The manager alone


def runs_without_end(journal: ManagerJournal) -> Iterator[str]:
    """G-3: every run ended, with an outcome and a reason that a person can read."""
    if not journal.runs:
        yield "the manager's journal has no run at all"
    for run in journal.runs:
        if run.outcome is None or not run.reason or run.ended_at is None:
            yield f"run {run.run_id} has no end: outcome {run.outcome}, reason {run.reason}"
        for mac, member in run.members.items():
            yield from _odd_member(run, mac, member)


def _odd_member(run: Run, mac: str, member: Member) -> Iterator[str]:
    if member.has_ended and member.status != Outcome.FINISHED and not member.reason:
        yield f"{mac} is {member.status} in run {run.run_id} and nobody knows why"
    if "Traceback" in (member.reason or ""):
        yield f"{mac} is {member.status} in run {run.run_id} by a traceback: {member.reason}"
    if member.attempt > member.last_attempt > 0:
        yield f"{mac} is in attempt {member.attempt} of run {run.run_id}, {member.last_attempt} were fired"


def changed_decisions(journal: ManagerJournal) -> Iterator[str]:
    """G-6: restarts change no decision; what was decided once stays so, and nothing is decided after the end."""
    closed: dict[str, Told] = {}
    launched: set[tuple[str, object]] = set()
    meant_for: dict[tuple[str, str | None, object], object] = {}
    for event in journal.events:
        if event.run_id in closed and event.kind in ("RunClosed", "TriggerFired", "ServerLaunched", "ClientChosen"):
            yield f"run {event.run_id} was closed by event {closed[event.run_id].id}, then came {event}"
        if event.kind == "RunClosed":
            closed[event.run_id] = event
        if event.kind == "ServerLaunched":
            launch = (event.run_id, event.detail["launch"])
            if launch in launched:
                yield f"launch {launch} was begun twice"
            launched.add(launch)
        if event.kind == "TriggerFired":
            firing = (event.run_id, event.client_mac, event.detail["attempt"])
            if meant_for.setdefault(firing, event.detail["instance"]) != event.detail["instance"]:
                yield f"firing {firing} was meant for two instances"
    for run in journal.runs:
        said = closed.get(run.run_id)
        if said is None or (said.detail["outcome"], said.detail["reason"]) != (run.outcome, run.reason):
            yield f"run {run.run_id} is {run.outcome} ({run.reason}), the journal told {said}"


def overlapping_runs(journal: ManagerJournal) -> Iterator[str]:
    """A task has at most one active run."""
    for before, after in zip(journal.runs, journal.runs[1:], strict=False):
        if before.ended_at is not None and after.created_at < before.ended_at:
            yield f"run {after.run_id} began before {before.run_id} had ended"


# The clients and the manager


def disagreements(journal: ManagerJournal, mac: str, facts: ClientState) -> Iterator[str]:
    """G-1 and G-2: a client took up only what was fired, and what it came to is what the manager knows."""
    runs = {run.run_id: run for run in journal.runs}
    fired = {
        (each.run_id, each.detail["attempt"]) for each in journal.of_kind("TriggerFired") if each.client_mac == mac
    }
    if facts.active_training is not None:
        yield f"{mac} is idle and its journal has {facts.active_training} in hand"
    for answered in facts.answers:
        if (answered.run_id, answered.attempt) not in fired:
            yield f"{mac} answered {answered}, which was never fired"
        if answered.run_id in runs:
            yield from _outcomes(runs[answered.run_id], mac, answered, facts)
    finished = [each.run_id for each in facts.answers if each.outcome is Outcome.FINISHED]
    yield from (
        f"{mac} finished run {run_id} twice" for run_id in {each for each in finished if finished.count(each) > 1}
    )


def _outcomes(run: Run, mac: str, answered: TriggerReply, facts: ClientState) -> Iterator[str]:
    member = run.members.get(mac)
    if member is None:
        yield f"{mac} was told to start {answered.run_id} and is no member of it"
        return
    if answered.answer is Answer.ACCEPTED and answered.outcome is None and _was_last(answered, facts):
        yield f"{mac} accepted {answered} and it has come to nothing"
    if answered.outcome is Outcome.FINISHED and member.status != Outcome.FINISHED:
        yield f"{mac} finished {answered.run_id} attempt {answered.attempt}, the manager has it as {member}"
    if member.status == Outcome.FINISHED and member.attempt == answered.attempt and answered.outcome is Outcome.STOPPED:
        yield f"{mac} was stopped in {answered.run_id} attempt {answered.attempt}, the manager has it as finished"


def _was_last(answered: TriggerReply, facts: ClientState) -> bool:
    """Whether no later attempt took this one over (a training process that was aimed anew)."""
    return all(each.run_id != answered.run_id or each.attempt <= answered.attempt for each in facts.answers)


def begun_without_start(mac: str, begun: Sequence[tuple[str, int]], facts: ClientState) -> Iterator[str]:
    """A training process stands behind an accepted start, on disk before it."""
    known = {(each.run_id, each.attempt) for each in facts.answers}
    for pair in begun:
        if pair not in known:
            yield f"{mac} trained {pair}, of which its journal knows nothing"


# The models


def models(journal: ManagerJournal, store: ModelStore) -> Iterator[str]:
    """Whatever was saved can be read, without a gap, and each completed run has its one model, of its last round."""
    versions = store.versions()
    if versions != list(range(1, len(versions) + 1)):
        yield f"the models have the versions {versions}"
    saved = [store.load(version) for version in versions]
    completed = [run for run in journal.runs if run.outcome is RunOutcome.COMPLETED]
    for run in completed:
        rounds = [model.round for model in saved if model.run_id == run.run_id]
        if rounds != [run.spec.num_rounds]:
            yield f"run {run.run_id} completed {run.spec.num_rounds} rounds and left models of rounds {rounds}"
    known = {run.run_id for run in journal.runs}
    yield from (f"{model.path} is of {model.run_id}, which is no run" for model in saved if model.run_id not in known)
