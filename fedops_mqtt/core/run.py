"""One run's life as a value: what happened is applied, nothing is decided here (see `run_plan`) and nothing is done.

Times are the manager's own clock in seconds; a device's clock never enters.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, assert_never

from fedops_mqtt.core.fleet import StatusView
from fedops_mqtt.core.limits import RunLimits
from fedops_mqtt.core.run_member import (
    BAD_ENDS,
    REPORTED_BY_SERVERS,
    ClientChosen,
    Member,
    MemberGaveUp,
    RunClosed,
    RunEvent,
    RunWaits,
    ServerExited,
    ServerHostLost,
    ServerLaunched,
    ServerUnreachable,
    StopRequested,
    StopSent,
    TriggerFired,
    fired,
    moved,
    rejected,
    replaced,
    seen_training,
    server_reports,
    uninvited,
)
from fedops_mqtt.protocol import (
    Answer,
    AppReference,
    ClientStatus,
    CurrentRun,
    LastRun,
    MemberCondition,
    Outcome,
    Phase,
    ReasonCode,
    RunCondition,
    RunOutcome,
    ServerCondition,
    ServerStatus,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What was asked for. `clients`: None takes every client of the task that is idle; 0 rounds: the server's own."""

    run_id: str
    task_id: str
    num_rounds: int
    min_clients: int
    clients: tuple[str, ...] | None = None
    join: Literal["invited", "open"] = "invited"
    is_adopted: bool = False
    app: AppReference | None = None
    """The published app that it trains with; None: the one that each device has of its own."""
    run_config: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Settings of this run for the app."""
    limits: RunLimits = field(default_factory=RunLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it stands."""

    spec: RunSpec
    created_at: float
    status: RunCondition = RunCondition.PENDING
    outcome: RunOutcome | None = None
    reason: str | None = None
    """Why it ended as it did; of an open run what it waits for."""
    launch: int = 0
    launched_at: float | None = None
    exited_at: float | None = None
    exit_reason: str | None = None
    is_unreachable: bool = False
    host_problem: str | None = None
    """Why the host of the server cannot be asked about it; None: it can."""
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
    def num_rounds(self) -> int:
        """How many rounds it has: the server's number, else what was asked for; 0 where neither is known yet."""
        return (self.server.num_rounds if self.server else 0) or self.spec.num_rounds

    @property
    def has_ended(self) -> bool:
        """True once the run has an outcome."""
        return self.outcome is not None

    @property
    def server_ip(self) -> str | None:
        """Where the server of the current launch can be reached, once it has published that."""
        if self.server is None or self.server.launch != self.launch or self.server.status not in _SERVING:
            return None
        return self.server.server_ip

    @property
    def has_living_server(self) -> bool:
        """True while the present launch has published a status and nothing shows its death; its will alone does not."""
        has_reported = self.server is not None and self.server.launch == self.launch
        return has_reported and self.exited_at is None and not self.is_unreachable


_SERVING = frozenset({ServerCondition.READY, ServerCondition.RUNNING})


def apply(run: Run, event: RunEvent, now: float) -> Run:
    """Return the run after one event; applying the same event again changes nothing more."""
    return apply_all(run, (event,), now)


def apply_all(run: Run, events: Iterable[RunEvent], now: float) -> Run:
    """Return the run after several events in order; for thousands of members at the cost of one copy."""
    members = dict(run.members)
    run = replace(run, members=MappingProxyType(members))
    for event in events:
        match event:
            case StatusView():
                _apply_client(run, members, event, now)
            case ClientChosen() | TriggerFired() | StopSent() | MemberGaveUp():
                _apply_own_event(members, event, now)
            case ServerStatus():
                run = _apply_server(run, members, event, now)
            case _:
                run = _apply_to_run(run, event, now)
    return run


def _apply_to_run(
    run: Run,
    event: ServerLaunched | ServerExited | ServerUnreachable | ServerHostLost | RunWaits | StopRequested | RunClosed,
    now: float,
) -> Run:
    match event:
        case ServerLaunched() | ServerExited() | ServerUnreachable() | ServerHostLost():
            return _apply_process(run, event, now)
        case RunWaits(reason=reason):
            return run if run.has_ended else replace(run, reason=reason)
        case StopRequested(reason=reason):
            return run if run.has_ended or run.stop_reason else replace(run, stop_reason=reason)
        case RunClosed(outcome=outcome, reason=reason):
            return run if run.has_ended else _close(run, outcome, reason, now)
    assert_never(event)


def _close(run: Run, outcome: RunOutcome, reason: str, now: float) -> Run:
    return replace(run, status=RunCondition.FINISHED, outcome=outcome, reason=reason, ended_at=now)


def _apply_process(
    run: Run, event: ServerLaunched | ServerExited | ServerUnreachable | ServerHostLost, now: float
) -> Run:
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
                host_problem=None,
                ready_at=None,
            )
        case ServerExited(launch=launch, reason=reason) if launch == run.launch and run.exited_at is None:
            return replace(run, exited_at=now, exit_reason=reason, host_problem=None)
        case ServerUnreachable(launch=launch) if launch == run.launch:
            return replace(run, is_unreachable=True)
        case ServerHostLost(launch=launch, problem=problem) if launch == run.launch and run.exited_at is None:
            # Its time to start begins anew with a host that answers again.
            is_back = run.host_problem is not None and problem is None
            return replace(run, host_problem=problem, launched_at=now if is_back else run.launched_at)
    return run


def _apply_own_event(
    members: dict[str, Member], event: ClientChosen | TriggerFired | StopSent | MemberGaveUp, now: float
) -> None:
    mac = event.client_mac
    member = members.get(mac)
    if member is None:
        if isinstance(event, ClientChosen):
            members[mac] = Member()
        return
    match event:
        case ClientChosen():
            pass
        case TriggerFired(attempt=attempt, instance=instance, launch=launch):
            members[mac] = fired(member, attempt, instance, launch, now)
        case StopSent():
            members[mac] = replace(member, stop_sent_at=now)
        case MemberGaveUp(status=status, reason=reason) if not member.has_ended:
            members[mac] = moved(member, status, reason, now)


def _apply_server(run: Run, members: dict[str, Member], report: ServerStatus, now: float) -> Run:
    if report.task_id != run.spec.task_id or report.run_id != run.run_id or report.launch < run.launch:
        return run
    if report.launch > run.launch and not run.spec.is_adopted:
        return run
    if _has_final_status(run, report.launch) and not report.status.is_final:
        return run  # it was read from disk, and overtook what the bus still had to bring
    if report.status is ServerCondition.SERVER_OUT:
        return _server_out(run, report)
    run = replace(run, server=report, launch=report.launch, is_unreachable=False)
    if report.status in _SERVING and not run.has_ended:
        run = replace(run, status=RunCondition.RUNNING, ready_at=run.ready_at if run.ready_at is not None else now)
    for mac, client in report.clients.items():
        if client.status in REPORTED_BY_SERVERS:
            before = members.get(mac) or uninvited(client)
            members[mac] = _after_the_end(run, before, server_reports(before, client, now))
    return run


def _has_final_status(run: Run, launch: int) -> bool:
    return run.server is not None and run.server.launch == launch and run.server.status.is_final


def _server_out(run: Run, report: ServerStatus) -> Run:
    """A goodbye or last will carries nothing of the clients."""
    if run.server is None:
        return run
    left = {"status": report.status, "reason": report.reason, "reason_code": report.reason_code}
    return replace(run, server=run.server.model_copy(update=left))


def _apply_client(run: Run, members: dict[str, Member], view: StatusView[ClientStatus], now: float) -> None:
    mac = view.status.client_mac
    member = members.get(mac)
    if member is not None and view.status.task_id == run.spec.task_id and member.attempt > 0:
        members[mac] = _after_the_end(run, member, _client_reports(run, member, view, now))


def _after_the_end(run: Run, before: Member, after: Member) -> Member:
    """What becomes of a member when its run has ended is the run's doing: it came too late, or was stopped.

    Else a slow device that was left out would be called rejected, interrupted or lost, whichever report came first, and
    who was stopped would give as its reason by which signal its server was.
    """
    if not run.has_ended or after is before or after.status not in BAD_ENDS | {MemberCondition.LOST}:
        return after
    is_interrupted = after.reason_code is ReasonCode.INTERRUPTED
    is_own_failure = after.status is MemberCondition.FAILED and not is_interrupted
    if is_own_failure:
        return after
    if after.training_at is None:
        why = f"left out: the run had {run.outcome} before it joined"
        return replace(after, status=MemberCondition.STOPPED, reason=why, reason_code=None)
    if after.status is MemberCondition.STOPPED:
        return replace(after, reason=f"run {run.outcome}: {run.reason}", reason_code=None)
    return after


def _client_reports(run: Run, member: Member, view: StatusView[ClientStatus], now: float) -> Member:
    status = view.status
    if status.last_run is not None and _is_about(run, member, status.last_run):
        return _ended(run, member, status.last_run, now)
    if member.has_ended:
        return member
    if view.is_out:
        return _client_out(run, member, view, now)
    current = status.run
    if current is not None and current.run_id == run.run_id and _is_ours(member, current):
        return _in_training(run, replace(member, attempt=current.attempt), status.client_mac, current, now)
    if status.instance != member.instance:
        return replaced(member, now)
    answer = status.last_trigger
    if answer and (answer.run_id, answer.attempt) == (run.run_id, member.attempt) and answer.answer is Answer.REJECTED:
        return rejected(member, answer, now)
    return member


def _is_about(run: Run, member: Member, last: LastRun) -> bool:
    """A training that finished is the client's result, whichever firing began it."""
    if last.run_id != run.run_id:
        return False
    return last.attempt == member.attempt or last.outcome is Outcome.FINISHED


def _is_ours(member: Member, current: CurrentRun) -> bool:
    """One of our firings; an earlier one that was answered late holds, the client turns the later one down as busy."""
    return current.attempt == member.attempt or current.attempt <= member.last_attempt


_HAS_JOINED = frozenset(Phase) - {Phase.STARTING, Phase.JOINING}


def _in_training(run: Run, member: Member, mac: str, current: CurrentRun, now: float) -> Member:
    """A client whose line is broken may still report that it trains: there the server's report counts."""
    if not _server_misses(run, mac, member):
        member = moved(member, MemberCondition.TRAINING, None, now)
    member = replace(member, phase=current.phase, round=current.round)
    return seen_training(member, now) if current.phase in _HAS_JOINED else member


def _server_misses(run: Run, mac: str, member: Member) -> bool:
    if run.server is None or run.server_ip is None:
        return False
    client = run.server.clients.get(mac)
    return client is not None and client.attempt == member.attempt and client.status is MemberCondition.LOST


def _ended(run: Run, member: Member, last: LastRun, now: float) -> Member:
    """A client's own report on its outcome outweighs what the server guessed from a broken line."""
    if last.outcome is Outcome.FAILED and last.reason_code is ReasonCode.INTERRUPTED:
        return _interrupted(run, member, last, now)
    status = MemberCondition(last.outcome.value)
    return replace(member, status=status, reason=last.reason, reason_code=last.reason_code, phase=None)


def _interrupted(run: Run, member: Member, last: LastRun, now: float) -> Member:
    """A client that lost its training process may try again, though its server took it for failed."""
    is_over = member.status is not MemberCondition.FAILED or member.last_attempt >= run.spec.limits.max_attempts
    if member.has_ended and is_over:
        return member
    return moved(member, MemberCondition.LOST, last.reason, now, last.reason_code)


def _client_out(run: Run, member: Member, view: StatusView[ClientStatus], now: float) -> Member:
    """While the server lives, who is in the run is what the server reports; before that the bus is all there is."""
    is_on_the_line = member.training_at is not None and member.status is MemberCondition.TRAINING
    if is_on_the_line and run.has_living_server:
        return member
    return moved(member, MemberCondition.LOST, view.out_reason, now)


ACCURACY, LOSS = "accuracy", "loss"


def measure_name(metrics: Mapping[str, float | None], ending: str) -> str | None:
    """Return the name that is the ending itself, else the shortest that ends so; None when no value is called so."""
    named = (name for name, value in metrics.items() if name.endswith(ending) and value is not None)
    return min(sorted(named), key=len, default=None)


def measure(metrics: Mapping[str, float | None], ending: str) -> float | None:
    """Return the value that `measure_name` names."""
    name = measure_name(metrics, ending)
    return None if name is None else metrics[name]
