"""Reasons are what happened, and name whom it happened to: what a run waits for, why it failed, who was left out."""

import pytest
from run_parts import LIMITS, TASK, A, B, C, World, answer, client, ended, hand, interrupted, server, trains, will

from fedops_mqtt.core.run_member import RunClosed, RunWaits, StopRequested
from fedops_mqtt.core.run_plan import waits_for
from fedops_mqtt.protocol import (
    Answer,
    ClientStatus,
    MemberCondition,
    Outcome,
    Phase,
    ReasonCode,
    RunOutcome,
    ServerClient,
    ServerCondition,
)

TOO_FEW = "too few clients: 0 after 3 s, 2 needed"


def waiting(world: World) -> str:
    said = waits_for(world.run, world.fleet)
    assert said is not None
    return said


def reason_of(world: World) -> str:
    closed = [each.reason for each in world.acts() if isinstance(each, RunClosed)]
    return closed[0]


def test_a_lack_of_clients_is_reported_at_once_with_the_clients_that_cannot_train_now() -> None:
    world = World.at_start(min_clients=10)
    world.publishes(client(A), client(B), client(C))
    assert waiting(world) == "waits for clients: 3 idle, 10 needed"
    world.publishes(will(C), client(B, hand=hand(run_id="another")))
    assert waiting(world) == "waits for clients: 1 idle, 10 needed; 1 out, 1 training another run"


def test_a_run_with_enough_clients_reports_no_wait_and_reports_it_again_when_one_is_lost() -> None:
    world = World.at_start()
    world.publishes(client(A), client(B))
    assert waits_for(world.run, world.fleet) is None
    world.reaches_training(A, B)
    assert waits_for(world.run, world.fleet) is None
    world.publishes(server(clients={A: ServerClient(status=MemberCondition.LOST, attempt=1, reason="line")}))
    assert waiting(world) == f"waits for clients: 0 idle, 2 needed; 1 in the run, {A} (lost: line)"


def test_a_requested_client_that_was_never_seen_is_named() -> None:
    world = World.at_start(clients=(A, B))
    world.publishes(client(A))
    assert waiting(world) == f"waits for clients: 1 idle, 2 needed; {B} (never seen)"


def test_no_wait_is_reported_while_the_bus_is_disconnected() -> None:
    world = World.at_start(min_clients=10)
    world.fleet.pause()
    assert waits_for(world.run, world.fleet) is None


def test_what_a_run_waits_for_is_its_reason_until_it_ends() -> None:
    world = World.at_start()
    world.happens(RunWaits("for clients"))
    assert world.run.reason == "for clients"
    world.happens(RunWaits(None))
    assert world.run.reason is None
    world.happens(RunClosed(RunOutcome.FAILED, "why"), RunWaits("for clients"))
    assert world.run.reason == "why"


def a_run_of_two() -> World:
    world = World.at_start()
    world.publishes(client(A), client(B))
    world.acts()
    world.publishes(server())
    world.acts()
    return world


@pytest.mark.parametrize("said", [MemberCondition.FINISHED, MemberCondition.TRAINING, MemberCondition.FAILED])
def test_whom_the_server_has_had_is_not_called_one_that_never_joined(said: MemberCondition) -> None:
    world = a_run_of_two()
    seen = {A: ServerClient(status=said, attempt=1, phase=Phase.EVALUATING)}
    world.publishes(server(ServerCondition.FAILED, reason=TOO_FEW, code=ReasonCode.TOO_FEW_CLIENTS, clients=seen))
    assert reason_of(world) == f"{TOO_FEW}; never joined: {B} (triggered)"


@pytest.mark.parametrize("reason", ["ZeroDivisionError: division by zero", "too few clients: my strategy has no more"])
def test_a_servers_own_crash_names_no_client_whatever_its_text(reason: str) -> None:
    world = a_run_of_two()
    world.publishes(server(ServerCondition.FAILED, reason=reason))
    assert reason_of(world) == reason


LATE = [
    client(B, answer=answer(1, Answer.REJECTED, "came too late: run completed: all rounds done")),
    client(B, answer=answer(1, Answer.REJECTED, "stopped")),
    client(B, last_run=ended(Outcome.STOPPED, reason="run completed: all rounds done")),
    client(B, last_run=interrupted(reason="interrupted: the daemon was ended while it trained")),
    will(B, epoch=5),
]


@pytest.mark.parametrize("word", LATE)
def test_a_slow_device_is_left_out_of_a_short_run_whatever_it_reports_first(word: ClientStatus) -> None:
    world = a_run_of_two()
    world.publishes(trains(A), client(B, hand=hand(phase=Phase.STARTING), answer=answer()))
    world.happens(RunClosed(RunOutcome.COMPLETED, "all rounds done"))
    world.publishes(word)
    left_out = world.run.members[B]
    assert (left_out.status, left_out.reason) == (
        MemberCondition.STOPPED,
        "left out: the run had completed before it joined",
    )


@pytest.mark.parametrize("reason", ["ImportError: torch", "interrupted: by the app"])
def test_a_training_that_failed_by_itself_after_the_runs_end_keeps_its_reason(reason: str) -> None:
    world = a_run_of_two()
    world.happens(RunClosed(RunOutcome.COMPLETED, "all rounds done"))
    world.publishes(client(B, last_run=ended(Outcome.FAILED, reason=reason)))
    assert (world.run.members[B].status, world.run.members[B].reason) == (MemberCondition.FAILED, reason)


def test_a_stopped_client_has_the_reason_of_the_stopped_run_and_not_a_signal() -> None:
    world = a_run_of_two()
    world.publishes(trains(A), trains(B))
    world.happens(StopRequested("seen enough"))
    world.acts()
    said = {A: ServerClient(status=MemberCondition.STOPPED, attempt=1, reason="run stopped: SIGTERM")}
    world.publishes(server(ServerCondition.STOPPED, reason="SIGTERM", clients=said))
    world.publishes(client(B, last_run=ended(Outcome.STOPPED, reason="run stopped: SIGTERM")))
    assert {member.reason for member in world.run.members.values()} == {"run stopped: seen enough"}
    assert (world.run.reason, world.run.spec.task_id, world.run.spec.limits) == ("seen enough", TASK, LIMITS)
