"""What to do about a run: `plan` compares it with the fleet and names the actions that bring the world to it.

Pure and repeatable: the same run, fleet and time give the same plan, before a restart and after it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fedops_mqtt.core.fleet import Fleet, View, is_idle
from fedops_mqtt.core.run import Member, Run
from fedops_mqtt.protocol import (
    ClientStatus,
    MemberCondition,
    RunOutcome,
    ServerCondition,
)

EXIT_WORD_GRACE_S = 2.0
"""A server's last word may arrive after its process is seen to have gone; wait this long for it."""


@dataclass(frozen=True, slots=True)
class LaunchServer:
    """Start the FL server's process."""

    launch: int


@dataclass(frozen=True, slots=True)
class EndServer:
    """End the FL server's process, if there is one."""

    reason: str


@dataclass(frozen=True, slots=True)
class ChooseClient:
    """Take a client into the run."""

    client_mac: str


@dataclass(frozen=True, slots=True)
class FireTrigger:
    """Publish a start trigger."""

    client_mac: str
    attempt: int
    instance: str
    launch: int


@dataclass(frozen=True, slots=True)
class StopClient:
    """Publish a stop trigger."""

    client_mac: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUpMember:
    """Wait no longer for a client."""

    client_mac: str
    status: MemberCondition
    reason: str


@dataclass(frozen=True, slots=True)
class CloseRun:
    """Give the run its outcome."""

    outcome: RunOutcome
    reason: str


Action = LaunchServer | EndServer | ChooseClient | FireTrigger | StopClient | GiveUpMember | CloseRun


def plan(run: Run, fleet: Fleet, now: float) -> list[Action]:
    """Return what has to be done now, in order; empty when there is only waiting."""
    if run.has_ended:
        return list(_after_the_end(run, fleet, now))
    closing = _closing(run, fleet, now)
    if closing is not None:
        return [closing]
    return [*_about_server(run, now), *_about_members(run, fleet, now)]


def _closing(run: Run, fleet: Fleet, now: float) -> CloseRun | None:
    limits = run.spec.limits
    if run.server is not None and run.server.launch == run.launch and run.server.status.is_final:
        return CloseRun(_OUTCOMES[run.server.status], run.server.reason or _PLAIN_REASONS[run.server.status])
    if run.stop_reason is not None:
        return CloseRun(RunOutcome.STOPPED, run.stop_reason)
    if now - run.created_at > limits.run_s:
        return CloseRun(RunOutcome.FAILED, f"run limit of {limits.run_s:g} s passed")
    if _server_is_gone(run, now) and (run.launch >= limits.max_launches or run.spec.is_adopted):
        return CloseRun(RunOutcome.FAILED, f"FL server ended {run.launch} times: {_why_gone(run, now)}")
    return _below_quorum(run, fleet, now)


_OUTCOMES = {
    ServerCondition.FINISHED: RunOutcome.COMPLETED,
    ServerCondition.FAILED: RunOutcome.FAILED,
    ServerCondition.STOPPED: RunOutcome.STOPPED,
}
_PLAIN_REASONS = {
    ServerCondition.FINISHED: "all rounds done",
    ServerCondition.FAILED: "FL server failed",
    ServerCondition.STOPPED: "FL server was stopped",
}


def _below_quorum(run: Run, fleet: Fleet, now: float) -> CloseRun | None:
    """A run that cannot reach its minimum: at once when nobody can come back, else after the join limit."""
    if run.ready_at is None and not run.spec.is_adopted:
        return None
    counted = [member for member in run.members.values() if member.may_count]
    here = [member for member in counted if member.status is not MemberCondition.LOST]
    if len(here) >= run.spec.min_clients:
        return None
    is_hopeless = len(counted) < run.spec.min_clients and not _can_grow(run)
    if not is_hopeless and now - _short_since(run) <= run.spec.limits.join_s:
        return None
    return CloseRun(RunOutcome.FAILED, _quorum_reason(run, fleet, len(here)))


def _can_grow(run: Run) -> bool:
    if run.spec.clients is not None:
        return not set(run.spec.clients) <= set(run.members)
    return run.spec.join == "open" or not run.members


def _short_since(run: Run) -> float:
    """Since when the run has been waiting for its minimum: the server's readiness or the last loss."""
    losses = [member.lost_at for member in run.members.values() if member.lost_at is not None]
    return max(run.created_at, run.ready_at or run.created_at, *losses)


def _quorum_reason(run: Run, fleet: Fleet, num_here: int) -> str:
    missing = [
        f"{mac} ({member.status}{': ' + member.reason if member.reason else ''})"
        for mac, member in sorted(run.members.items())
        if not member.may_count or member.status is MemberCondition.LOST
    ]
    missing += [f"{mac} ({_absence(run, fleet, mac)})" for mac in run.spec.clients or () if mac not in run.members]
    who = "; missing: " + ", ".join(missing) if missing else ""
    return f"{num_here} of at least {run.spec.min_clients} clients{who}"


def _absence(run: Run, fleet: Fleet, mac: str) -> str:
    view = fleet.client(run.spec.task_id, mac)
    if view is None:
        return "never seen"
    return view.out_reason or ("training another run" if view.status.run else "not chosen")


def _about_server(run: Run, now: float) -> Iterator[Action]:
    if run.spec.is_adopted:
        return
    if run.launch == 0:
        yield LaunchServer(1)
    elif _server_is_gone(run, now):
        yield EndServer(_why_gone(run, now))
        yield LaunchServer(run.launch + 1)


def _server_is_gone(run: Run, now: float) -> bool:
    if run.exited_at is not None:
        return now - run.exited_at > EXIT_WORD_GRACE_S
    return run.is_unreachable or _is_late(run, now)


def _is_late(run: Run, now: float) -> bool:
    started = run.launched_at
    has_spoken = run.server is not None and run.server.launch == run.launch and run.server.server_ip is not None
    return started is not None and not has_spoken and now - started > run.spec.limits.server_start_s


def _why_gone(run: Run, now: float) -> str:
    if run.exited_at is not None:
        return run.exit_reason or "its process is gone"
    if _is_late(run, now):
        return f"not ready within {run.spec.limits.server_start_s:g} s"
    return "silent on the bus and its line does not answer"


def _about_members(run: Run, fleet: Fleet, now: float) -> Iterator[Action]:
    if run.server_ip is None:
        return
    for mac in _to_choose(run, fleet):
        yield ChooseClient(mac)
    for mac, member in run.members.items():
        view = fleet.client(run.spec.task_id, mac)
        if not member.has_ended and view is not None:
            yield from _about_member(run, mac, member, view, now)


def _to_choose(run: Run, fleet: Fleet) -> list[str]:
    """Every wanted client that is idle: once the minimum is here, later ones too where the run is open."""
    if run.members and run.spec.join == "invited" and run.spec.clients is None:
        return []
    idle = [view.status.client_mac for view in fleet.of_task(run.spec.task_id) if is_idle(view)]
    wanted = [mac for mac in idle if mac not in run.members and (run.spec.clients is None or mac in run.spec.clients)]
    is_enough = len(wanted) + len(run.members) >= run.spec.min_clients
    return wanted if is_enough or run.members or run.spec.clients is not None else []


def _about_member(run: Run, mac: str, member: Member, view: View[ClientStatus], now: float) -> Iterator[Action]:
    limits = run.spec.limits
    if view.is_out or _is_acknowledged(run, member, view):
        return
    attempt = member.attempt if _is_same_attempt(run, member, view) else member.attempt + 1
    if attempt > limits.max_attempts:
        yield GiveUpMember(mac, MemberCondition.FAILED, f"{member.attempt} attempts: {member.reason or 'no answer'}")
    elif _has_no_answer(member, now, limits.trigger_answer_s):
        yield GiveUpMember(mac, MemberCondition.LOST, f"no answer to its trigger within {limits.trigger_answer_s:g} s")
    elif attempt > member.attempt and view.status.run is not None:
        return  # busy with something else, or its training process is still rejoining by itself
    elif attempt > member.attempt or _is_time_to_repeat(run, member, now):
        yield FireTrigger(mac, attempt, view.status.instance, run.launch)


def _is_acknowledged(run: Run, member: Member, view: View[ClientStatus]) -> bool:
    """The client holds exactly what we would say: this run, attempt and launch."""
    hand = view.status.run
    return hand is not None and (hand.run_id, hand.attempt, hand.launch) == (run.run_id, member.attempt, run.launch)


def _is_same_attempt(run: Run, member: Member, view: View[ClientStatus]) -> bool:
    """The firing in flight is still meant for this daemon; anything else needs a new attempt."""
    if member.attempt == 0 or view.status.instance != member.instance:
        return False
    holds_it = view.status.run is not None and view.status.run.run_id == run.run_id
    return holds_it or member.status is MemberCondition.TRIGGERED


def _has_no_answer(member: Member, now: float, limit_s: float) -> bool:
    is_waiting = member.status is MemberCondition.TRIGGERED and member.first_fired_at is not None
    return is_waiting and now - (member.first_fired_at or now) > limit_s


def _is_time_to_repeat(run: Run, member: Member, now: float) -> bool:
    is_new_aim = member.launch < run.launch
    return is_new_aim or member.fired_at is None or now - member.fired_at >= run.spec.limits.trigger_retry_s


def _after_the_end(run: Run, fleet: Fleet, now: float) -> Iterator[Action]:
    """Whoever still trains a closed run is told to stop: at once when it was cut off, else after a grace."""
    ended_at = run.ended_at if run.ended_at is not None else now
    if run.outcome is RunOutcome.COMPLETED and now - ended_at < run.spec.limits.close_grace_s:
        return
    if run.exited_at is None and run.launch > 0 and not run.spec.is_adopted:
        yield EndServer(run.reason or "run ended")
    for mac, member in run.members.items():
        view = fleet.client(run.spec.task_id, mac)
        if view is not None and _still_trains(run, view) and _may_say_stop(run, member, now):
            attempt = view.status.run.attempt if view.status.run else member.attempt
            yield StopClient(mac, attempt, f"run {run.outcome}: {run.reason}")


def _still_trains(run: Run, view: View[ClientStatus]) -> bool:
    return not view.is_out and view.status.run is not None and view.status.run.run_id == run.run_id


def _may_say_stop(run: Run, member: Member, now: float) -> bool:
    return member.stop_said_at is None or now - member.stop_said_at >= run.spec.limits.trigger_retry_s
