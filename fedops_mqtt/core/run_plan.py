"""What to do about a run: `plan` compares it with the fleet and names the actions that bring the world to it.

Pure and repeatable: the same run, fleet and time give the same plan, before a restart and after it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedops_mqtt.core.fleet import Fleet, StatusView, is_idle
from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_member import (
    ClientChosen,
    Member,
    MemberGaveUp,
    RunClosed,
    ServerLaunched,
    StopSent,
    TriggerFired,
)
from fedops_mqtt.protocol import (
    ClientStatus,
    MemberCondition,
    ReasonCode,
    RunOutcome,
    ServerCondition,
    ServerStatus,
    clip,
    first_line,
)

EXIT_STATUS_GRACE_S = 2.0
"""The final status of a server that could not keep it on disk may come after its process has ended."""

MAX_NAMED = 20
"""Clients named in a reason; a reason is read by people."""

MAX_NAMED_REASON = 120
"""Characters of each one's own reason in it."""


@dataclass(frozen=True, slots=True)
class EndServer:
    """End the FL server's process, if there is one; no event of the run, its exit is."""

    reason: str


Action = ServerLaunched | EndServer | ClientChosen | TriggerFired | StopSent | MemberGaveUp | RunClosed
"""An event of the run is written down and applied first, and carried out then; it names what is to be done."""


def plan(run: Run, fleet: Fleet, now: float) -> list[Action]:
    """Return what has to be done now, in order; empty when there is only waiting."""
    if run.has_ended:
        return list(_after_the_end(run, fleet, now))
    closing = _closing(run, fleet, now)
    if closing is not None:
        return [closing]
    return [*_about_server(run, fleet, now), *_about_members(run, fleet, now)]


def waits_for(run: Run, fleet: Fleet) -> str | None:
    """Return what an open run waits for, for people: the server's host, clients; None: nothing, or it cannot be known.

    Reported as soon as it is so, not when the join limit has passed.
    """
    waits = [run.host_problem, _clients_awaited(run, fleet)]
    return "; ".join(filter(None, waits)) or None


def _clients_awaited(run: Run, fleet: Fleet) -> str | None:
    num_here = sum(member.may_count and member.status is not MemberCondition.LOST for member in run.members.values())
    if fleet.listening_since is None or num_here >= run.spec.min_clients:
        return None
    others = list(_candidates(run, fleet))
    num_idle = sum(is_idle(view) for view in others)
    if num_here + num_idle >= run.spec.min_clients:
        return None
    lost = {mac: member for mac, member in run.members.items() if member.status is MemberCondition.LOST}
    num_out = sum(view.is_out for view in others)
    numbers = ((num_here, "in the run"), (num_out, "out"), (len(others) - num_idle - num_out, "training another run"))
    known = {view.status.client_mac for view in others} | set(run.members)
    more = [f"{number} {where}" for number, where in numbers if number] + _described(lost)
    more += [f"{mac} (never seen)" for mac in run.spec.clients or () if mac not in known]
    text = f"waits for clients: {num_idle} idle, {run.spec.min_clients} needed"
    return f"{text}; {_named(more)}" if more else text


def _closing(run: Run, fleet: Fleet, now: float) -> RunClosed | None:
    limits = run.spec.limits
    if run.server is not None and run.server.launch == run.launch and run.server.status.is_final:
        return RunClosed(_OUTCOMES[run.server.status], clip(_final_reason(run, run.server)) or "")
    if run.stop_reason is not None:
        return RunClosed(RunOutcome.STOPPED, clip(run.stop_reason) or "")
    if now - run.created_at > limits.run_s:
        return RunClosed(RunOutcome.FAILED, f"run limit of {limits.run_s:g} s passed")
    if _server_has_ended(run, fleet, now) and (run.launch >= limits.max_launches or run.spec.is_adopted):
        times = "" if run.spec.is_adopted else f" {run.launch} times"
        return RunClosed(RunOutcome.FAILED, clip(f"FL server ended{times}: {_departure_reason(run)}") or "")
    return _below_quorum(run, fleet, now)


_OUTCOMES = {
    ServerCondition.FINISHED: RunOutcome.COMPLETED,
    ServerCondition.FAILED: RunOutcome.FAILED,
    ServerCondition.STOPPED: RunOutcome.STOPPED,
}
_PLAIN_REASONS = {
    ServerCondition.FINISHED: "FL server finished",
    ServerCondition.FAILED: "FL server failed",
    ServerCondition.STOPPED: "FL server was stopped",
}


def _final_reason(run: Run, server: ServerStatus) -> str:
    """The server's own reason; where it failed for want of clients, with those who never came, whom it cannot know."""
    reason = server.reason or _PLAIN_REASONS[server.status]
    if server.reason_code is not ReasonCode.TOO_FEW_CLIENTS:
        return reason
    absent = {
        mac: member
        for mac, member in run.members.items()
        if member.training_at is None and mac not in server.clients and mac not in reason
    }
    return f"{reason}; never joined: {_named(_described(absent))}" if absent else reason


def _below_quorum(run: Run, fleet: Fleet, now: float) -> RunClosed | None:
    """A run that cannot reach its minimum: at once when no client can come back, else after the join limit."""
    deaf_until = fleet.listening_since
    if run.ready_at is None or deaf_until is None:
        return None
    counted = [member for member in run.members.values() if member.may_count]
    here = [member for member in counted if member.status is not MemberCondition.LOST]
    if len(here) >= run.spec.min_clients:
        return None
    is_hopeless = len(counted) < run.spec.min_clients and not _can_grow(run, fleet)
    if not is_hopeless and now - max(_short_since(run), deaf_until) <= run.spec.limits.join_s:
        return None
    return RunClosed(RunOutcome.FAILED, clip(_quorum_reason(run, fleet, len(here))) or "")


def _can_grow(run: Run, fleet: Fleet) -> bool:
    """Whether a client that is no member yet may still become one."""
    if run.spec.clients is not None:
        return not set(run.spec.clients) <= set(run.members)
    if run.spec.join == "open" or not run.members:
        return True
    return any(not view.is_out for view in _candidates(run, fleet))


def _candidates(run: Run, fleet: Fleet) -> Iterator[StatusView[ClientStatus]]:
    """The task's clients that may be taken into the run and are not in it."""
    wanted = run.spec.clients
    for view in fleet.of_task(run.spec.task_id):
        mac = view.status.client_mac
        if mac not in run.members and (wanted is None or mac in wanted):
            yield view


def _short_since(run: Run) -> float:
    """Since when the run has been waiting for its minimum: the server's readiness or the last loss."""
    losses = [member.lost_at for member in run.members.values() if member.lost_at is not None]
    return max(run.created_at, run.ready_at or run.created_at, *losses)


def _quorum_reason(run: Run, fleet: Fleet, num_here: int) -> str:
    absent = {mac: m for mac, m in run.members.items() if not m.may_count or m.status is MemberCondition.LOST}
    missing = _described(absent)
    known = [view.status.client_mac for view in _candidates(run, fleet)] if run.spec.clients is None else []
    missing += [f"{mac} ({_absence(run, fleet, mac)})" for mac in run.spec.clients or known if mac not in run.members]
    who = f"; missing: {_named(missing)}" if missing else "; no other client of the task is known"
    return f"{num_here} of at least {run.spec.min_clients} clients{who}"


def _described(members: Mapping[str, Member]) -> list[str]:
    return [
        f"{mac} ({member.status}{': ' + clip(first_line(member.reason), MAX_NAMED_REASON) if member.reason else ''})"
        for mac, member in sorted(members.items())
    ]


def _named(who: list[str]) -> str:
    return ", ".join(who[:MAX_NAMED] + ([f"{len(who) - MAX_NAMED} more"] if len(who) > MAX_NAMED else []))


def _absence(run: Run, fleet: Fleet, mac: str) -> str:
    view = fleet.client(run.spec.task_id, mac)
    if view is None:
        return "never seen"
    if view.is_out:
        return f"out: {view.out_reason}"
    return "training another run" if view.status.run else "idle"


def _about_server(run: Run, fleet: Fleet, now: float) -> Iterator[Action]:
    if run.spec.is_adopted:
        return
    if run.launch == 0:
        yield ServerLaunched(1)
    elif _server_has_ended(run, fleet, now):
        yield EndServer(_departure_reason(run))
        yield ServerLaunched(run.launch + 1)


def _server_has_ended(run: Run, fleet: Fleet, now: float) -> bool:
    """A disconnected reader cannot know this: the server's status may be waiting at the broker."""
    if fleet.listening_since is None:
        return False
    if run.exited_at is not None:
        return now - max(run.exited_at, fleet.listening_since) > EXIT_STATUS_GRACE_S
    if run.host_problem is not None:
        return False  # it may be alive: a second one is not started
    return run.is_unreachable or _is_late(run, fleet.listening_since, now)


def _is_late(run: Run, listening_since: float, now: float) -> bool:
    if run.launched_at is None or _has_reported(run):
        return False
    return now - max(run.launched_at, listening_since) > run.spec.limits.server_start_s


def _has_reported(run: Run) -> bool:
    return run.server is not None and run.server.launch == run.launch and run.server.server_ip is not None


def _departure_reason(run: Run) -> str:
    if run.exited_at is not None:
        return run.exit_reason or "its process has ended"
    if run.is_unreachable:
        return "silent on the bus and its line does not answer"
    return f"not ready within {run.spec.limits.server_start_s:g} s; its log: fedops-mqtt logs {run.run_id}"


def _about_members(run: Run, fleet: Fleet, now: float) -> Iterator[Action]:
    if run.server_ip is None or fleet.listening_since is None:
        return
    for mac in _to_choose(run, fleet):
        yield ClientChosen(mac)
    for mac, member in run.members.items():
        view = fleet.client(run.spec.task_id, mac)
        if not member.has_ended and view is not None and not view.is_out:
            yield from _about_member(run, mac, member, view, fleet.listening_since, now)


def _to_choose(run: Run, fleet: Fleet) -> list[str]:
    """Every wanted client that is idle: all at once when the minimum is here, later ones where the run is open.

    A run that fell below its minimum takes as many more as it lacks.
    """
    num_counted = sum(member.may_count for member in run.members.values())
    lacking = run.spec.min_clients - num_counted
    takes_all = run.spec.join == "open" or run.spec.clients is not None or not run.members
    if not takes_all and lacking <= 0:
        return []
    idle = [view.status.client_mac for view in _candidates(run, fleet) if is_idle(view)]
    if not run.members and run.spec.clients is None and len(idle) < lacking:
        return []
    return idle if takes_all else idle[:lacking]


def _about_member(
    run: Run, mac: str, member: Member, view: StatusView[ClientStatus], listening_since: float, now: float
) -> Iterator[Action]:
    limits = run.spec.limits
    current = view.status.run
    if current is not None and (current.run_id != run.run_id or current.attempt > member.last_attempt):
        return  # busy with something else, or here without a trigger of this manager
    if current is not None and (current.attempt, current.launch) == (member.attempt, run.launch):
        return  # trains exactly what would be triggered
    if current is not None and view.status.instance != member.instance:
        return  # the trigger reached a daemon that it was not meant for; repeated, it would be refused
    has_no_answer = _has_no_answer(member, listening_since, now, limits.trigger_answer_s)
    if current is None and (has_no_answer or _needs_new_attempt(run, member, view)):
        if member.last_attempt >= limits.max_attempts:
            why = "no answer to its trigger" if has_no_answer else member.reason or "no training"
            yield MemberGaveUp(mac, MemberCondition.FAILED, f"after {member.last_attempt} attempts: {why}")
        else:
            yield TriggerFired(mac, member.last_attempt + 1, view.status.instance, run.launch)
    elif _is_time_to_repeat(run, member, now):
        yield TriggerFired(mac, member.attempt, view.status.instance, run.launch)


def _needs_new_attempt(run: Run, member: Member, view: StatusView[ClientStatus]) -> bool:
    """The firing in force was for another daemon, or this one has answered it and does not train."""
    if member.attempt == 0 or view.status.instance != member.instance:
        return True
    answer = view.status.last_trigger
    return answer is not None and (answer.run_id, answer.attempt) == (run.run_id, member.attempt)


def _has_no_answer(member: Member, listening_since: float, now: float, limit_s: float) -> bool:
    if member.status is not MemberCondition.TRIGGERED or member.first_fired_at is None:
        return False
    return now - max(member.first_fired_at, listening_since) > limit_s


def _is_time_to_repeat(run: Run, member: Member, now: float) -> bool:
    is_new_aim = member.launch < run.launch
    is_due = member.fired_at is None or now - member.fired_at >= run.spec.limits.trigger_retry_s
    return is_new_aim or is_due


def _after_the_end(run: Run, fleet: Fleet, now: float) -> Iterator[Action]:
    """A client that still trains a closed run is stopped: at once when it was cut off, else after a grace.

    A client whose end the server has published is about to publish it itself: a stop would outrun its own report.
    """
    ended_at = run.ended_at if run.ended_at is not None else now
    is_in_grace = now - ended_at < run.spec.limits.close_grace_s
    if run.outcome is RunOutcome.COMPLETED and is_in_grace:
        return
    if run.exited_at is None and run.launch > 0 and not run.spec.is_adopted:
        yield EndServer(run.reason or "run ended")
    for mac, member in run.members.items():
        view = fleet.client(run.spec.task_id, mac)
        if view is not None and not view.is_out and not (member.has_ended and is_in_grace):
            yield from _stop(run, mac, member, view, now)


def _stop(run: Run, mac: str, member: Member, view: StatusView[ClientStatus], now: float) -> Iterator[StopSent]:
    """Stop who trains, as often as it takes; and once whoever may still read our trigger."""
    reason = f"run {run.outcome}: {run.reason}"
    current = view.status.run
    if current is not None and current.run_id == run.run_id:
        if member.stop_sent_at is None or now - member.stop_sent_at >= run.spec.limits.trigger_retry_s:
            yield StopSent(mac, max(current.attempt, member.last_attempt), reason)
    elif member.status is MemberCondition.TRIGGERED and member.stop_sent_at is None:
        yield StopSent(mac, member.last_attempt, reason)
