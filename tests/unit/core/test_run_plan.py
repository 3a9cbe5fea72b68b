from dataclasses import replace
from random import Random
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from run_parts import LIMITS, A, B, C, D, World, answer, client, ended, hand, interrupted, server, spec, trains, will

from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.core.run import Run, apply_all
from fedops_mqtt.core.run_member import (
    ClientChosen,
    MemberGaveUp,
    RunClosed,
    ServerExited,
    ServerHostLost,
    ServerLaunched,
    ServerUnreachable,
    StopRequested,
    StopSent,
    TriggerFired,
)
from fedops_mqtt.core.run_plan import EXIT_STATUS_GRACE_S, EndServer, plan, waits_for
from fedops_mqtt.protocol import (
    Answer,
    ClientCondition,
    ClientStatus,
    MemberCondition,
    Outcome,
    ReasonCode,
    RunOutcome,
    ServerClient,
    ServerCondition,
    ServerStatus,
)

M = MemberCondition


def in_training(*macs: str, **changes: object) -> World:
    world = World.at_start(**{"min_clients": len(macs), **changes})
    world.acts()
    world.reaches_training(*macs)
    return world


def fired(world: World) -> list[tuple[str, int, int]]:
    return [(each.client_mac, each.attempt, each.launch) for each in world.acts() if isinstance(each, TriggerFired)]


def closing(world: World) -> RunClosed | None:
    return next((each for each in world.acts() if isinstance(each, RunClosed)), None)


# The usual way


def test_a_new_run_launches_its_server_once() -> None:
    world = World.at_start()
    assert world.acts() == [ServerLaunched(1)]
    assert world.acts() == []


def test_clients_are_chosen_when_enough_are_idle_and_fired_at_once() -> None:
    world = World.at_start(min_clients=2)
    world.acts()
    world.publishes(server(), client(A))
    assert world.acts() == []
    world.publishes(client(B), client(C))
    fire = [TriggerFired(mac, 1, "i1", 1) for mac in (A, B, C)]
    assert world.acts() == [ClientChosen(A), ClientChosen(B), ClientChosen(C), *fire]
    assert world.acts() == []


def test_no_trigger_is_sent_before_the_server_can_be_reached() -> None:
    world = World.at_start(min_clients=1)
    world.publishes(client(A))
    assert world.acts() == [ServerLaunched(1)]
    world.publishes(server(ServerCondition.STARTING))
    assert world.acts() == []


def test_a_run_for_named_clients_takes_those_as_they_come_and_no_others() -> None:
    world = World.at_start(clients=(A, B), min_clients=2)
    world.acts()
    world.publishes(server(), client(A), client(C))
    assert fired(world) == [(A, 1, 1)]
    world.publishes(client(B))
    assert fired(world) == [(B, 1, 1)]


def test_later_clients_join_an_open_run_and_not_an_invited_one() -> None:
    for join, expected in (("open", [(C, 1, 1)]), ("invited", [])):
        world = in_training(A, B, join=join)
        world.publishes(client(C))
        assert fired(world) == expected


def test_a_client_that_trains_another_run_is_not_chosen_and_not_fired_at() -> None:
    world = World.at_start(min_clients=1, clients=(A,))
    world.acts()
    world.publishes(server(), client(A, hand=hand(run_id="run-0")))
    assert world.acts() == []
    world.publishes(client(A))
    assert fired(world) == [(A, 1, 1)]


# Triggers


def test_an_unanswered_trigger_is_repeated_under_its_number_and_then_as_a_new_attempt() -> None:
    world = World.at_start(min_clients=1)
    world.acts()
    world.publishes(server(), client(A))
    assert fired(world) == [(A, 1, 1)]
    world.waits(LIMITS.trigger_retry_s - 0.1)
    assert fired(world) == []
    world.waits(0.1)
    assert fired(world) == [(A, 1, 1)]
    world.waits(LIMITS.trigger_answer_s)
    assert fired(world) == [(A, 2, 1)]


def test_a_client_that_never_answers_fails_after_its_attempts_and_so_does_its_run() -> None:
    world = World.at_start(min_clients=1, clients=(A,))
    world.acts()
    world.publishes(server(), client(A, heartbeat_s=9999))
    for _ in range(100):
        world.acts()
        world.waits(2)
    assert world.run.members[A].status is M.FAILED
    assert world.run.outcome is RunOutcome.FAILED
    assert f"{A} (failed: after 3 attempts: no answer to its trigger)" in (world.run.reason or "")


def test_a_client_that_was_away_with_its_trigger_unanswered_is_fired_at_again_under_the_same_number() -> None:
    world = World.at_start(min_clients=1)
    world.acts()
    world.publishes(server(), client(A))
    world.acts()
    world.publishes(will(A))
    assert world.acts() == []
    world.waits(LIMITS.trigger_retry_s)
    assert world.acts() == []
    world.publishes(client(A))
    assert fired(world) == [(A, 1, 1)]
    assert world.run.members[A].status is M.TRIGGERED


def test_a_new_daemon_gets_a_new_attempt() -> None:
    world = in_training(A, B)
    world.publishes(server(ServerCondition.RUNNING, clients={A: ServerClient(status=M.LOST, attempt=1)}))
    world.publishes(client(A, instance="i2", last_run=interrupted()))
    assert world.acts() == [TriggerFired(A, 2, "i2", 1)]


def test_a_client_whose_app_failed_is_not_asked_again_whatever_the_text_of_its_error() -> None:
    world = in_training(A, B)
    world.publishes(
        client(A, instance="i2", last_run=ended(Outcome.FAILED, reason="interrupted: the sensor was unplugged"))
    )
    assert world.run.members[A].status is M.FAILED
    assert fired(world) == []


def test_a_trigger_is_not_repeated_to_a_daemon_it_was_not_meant_for() -> None:
    world = in_training(A, B)
    world.happens(ServerUnreachable(1))
    world.acts()
    world.publishes(server(launch=2), trains(A, instance="i2"), trains(B))
    assert fired(world) == [(B, 1, 2)]


def test_a_training_process_that_looks_for_its_server_is_left_alone() -> None:
    world = in_training(A, B)
    world.publishes(server(ServerCondition.RUNNING, clients={A: ServerClient(status=M.LOST, attempt=1)}))
    world.publishes(trains(A))
    world.waits(60)
    assert world.acts() == []


def test_a_busy_client_is_asked_again_when_it_is_free() -> None:
    world = World.at_start(min_clients=1)
    world.acts()
    world.publishes(server(), client(A))
    world.acts()
    busy = answer(1, Answer.REJECTED, "busy with run run-0, attempt 1", ReasonCode.BUSY)
    world.publishes(client(A, hand=hand(run_id="run-0"), answer=busy))
    world.waits(6)
    assert world.acts() == []
    world.publishes(client(A, answer=busy))
    assert fired(world) == [(A, 2, 1)]


def test_a_client_that_failed_or_rejected_is_not_asked_again() -> None:
    world = in_training(A, B, C, min_clients=1)
    world.publishes(client(A, last_run=ended(Outcome.FAILED, reason="ValueError")))
    world.waits(60)
    assert world.acts() == []


def test_nothing_is_published_to_clients_while_the_bus_is_disconnected() -> None:
    world = World.at_start(min_clients=1)
    world.acts()
    world.publishes(server(), client(A))
    world.fleet.pause()
    assert world.acts() == []


# The server


def test_a_server_that_ended_without_a_final_status_is_launched_again_and_clients_are_redirected() -> None:
    world = in_training(A, B)
    world.happens(ServerExited(1, "SIGKILL"))
    world.waits(EXIT_STATUS_GRACE_S)
    assert world.acts() == []
    world.waits(0.1)
    assert world.acts() == [EndServer("SIGKILL"), ServerLaunched(2)]
    world.publishes(server(launch=2))
    assert fired(world) == [(A, 1, 2), (B, 1, 2)]
    world.publishes(trains(A, launch=2), trains(B, launch=2))
    world.waits(60)
    assert world.acts() == []


def test_an_exit_is_not_judged_before_the_bus_was_connected_for_a_while() -> None:
    world = in_training(A, B)
    world.fleet.pause()
    world.happens(ServerExited(1, "exit 0"))
    world.now += 600
    assert world.acts() == []
    world.fleet.listen(world.now)
    world.publishes(server(ServerCondition.FINISHED, reason="all rounds done"))
    assert closing(world) == RunClosed(RunOutcome.COMPLETED, "all rounds done")


def test_a_server_that_is_not_ready_in_time_is_ended_and_launched_again_until_the_run_fails() -> None:
    world = World.at_start()
    launches = []
    for _ in range(400):
        launches += [each.launch for each in world.acts() if isinstance(each, ServerLaunched)]
        world.waits(1)
    assert launches == [1, 2, 3]
    assert (world.run.outcome, world.run.reason) == (
        RunOutcome.FAILED,
        f"FL server ended 3 times: not ready within 60 s; its log: fedops-mqtt logs {world.run.run_id}",
    )


def test_a_silent_server_whose_line_does_not_answer_is_replaced() -> None:
    world = in_training(A, B)
    world.happens(ServerUnreachable(1))
    assert world.acts() == [EndServer("silent on the bus and its line does not answer"), ServerLaunched(2)]


def test_an_adopted_server_that_disappears_ends_its_run_and_is_not_launched() -> None:
    world = World.at_start(is_adopted=True, min_clients=1)
    assert world.acts() == []
    world.publishes(client(A), server(launch=0))
    assert fired(world) == [(A, 1, 0)]
    world.happens(ServerUnreachable(0))
    assert closing(world) == RunClosed(
        RunOutcome.FAILED, "FL server ended: silent on the bus and its line does not answer"
    )


@pytest.mark.parametrize(
    ("word", "outcome"),
    [
        (ServerCondition.FINISHED, RunOutcome.COMPLETED),
        (ServerCondition.FAILED, RunOutcome.FAILED),
        (ServerCondition.STOPPED, RunOutcome.STOPPED),
    ],
)
def test_the_servers_final_status_is_the_runs_outcome(word: ServerCondition, outcome: RunOutcome) -> None:
    world = in_training(A, B)
    world.publishes(server(word, reason="because"))
    assert closing(world) == RunClosed(outcome, "because")


# Limits and quorum


def test_a_run_without_enough_clients_fails_after_the_join_limit_and_names_the_missing() -> None:
    world = World.at_start(min_clients=3)
    world.acts()
    world.publishes(client(A, heartbeat_s=9999), client(B, ClientCondition.CLIENT_OUT, reason="shutdown"))
    world.publishes(server())
    world.waits(LIMITS.join_s)
    assert closing(world) is None
    world.waits(0.1)
    reason = f"0 of at least 3 clients; missing: {A} (idle), {B} (out: shutdown)"
    assert closing(world) == RunClosed(RunOutcome.FAILED, reason)


def test_a_run_fails_at_once_when_no_client_can_replace_the_failed() -> None:
    world = in_training(A, B)
    world.publishes(client(A, last_run=ended(Outcome.FAILED, reason="Traceback\nValueError: bad data")))
    closed = closing(world)
    assert closed is not None
    assert closed.reason == f"1 of at least 2 clients; missing: {A} (failed: ValueError: bad data)"


def test_whom_the_server_stopped_as_it_ended_is_not_the_one_that_was_missing() -> None:
    world = World.at_start()
    world.publishes(client(A), client(B))
    world.acts()
    world.publishes(server())
    world.acts()
    world.publishes(trains(A))
    ending = "run failed: too few clients: 1 after 3 s, 2 needed"
    world.publishes(client(A, last_run=ended(Outcome.STOPPED, reason=ending)))  # another topic: it may come first
    assert closing(world) is None
    few = "too few clients: 1 after 3 s, 2 needed"
    world.publishes(server(ServerCondition.FAILED, reason=few, code=ReasonCode.TOO_FEW_CLIENTS))
    reason = f"too few clients: 1 after 3 s, 2 needed; never joined: {B} (triggered)"
    assert closing(world) == RunClosed(RunOutcome.FAILED, reason)


def test_another_idle_client_makes_up_for_a_failed_one() -> None:
    world = in_training(A, B)
    world.publishes(client(C), client(D))
    assert world.acts() == []
    world.publishes(client(A, last_run=ended(Outcome.FAILED, reason="no")))
    assert world.acts() == [ClientChosen(C), TriggerFired(C, 1, "i1", 1)]


def test_a_lost_client_is_waited_for_during_the_join_limit() -> None:
    world = in_training(A, B)
    world.publishes(server(ServerCondition.RUNNING, clients={A: ServerClient(status=M.LOST, attempt=1, reason="line")}))
    world.waits(LIMITS.join_s)
    assert closing(world) is None
    world.waits(0.1)
    assert closing(world) == RunClosed(RunOutcome.FAILED, f"1 of at least 2 clients; missing: {A} (lost: line)")


def test_a_finished_client_counts_for_the_quorum() -> None:
    world = in_training(A, B)
    world.publishes(client(A, last_run=ended()))
    world.waits(500)
    assert closing(world) is None


def test_the_run_limit_ends_a_run_even_while_the_bus_is_disconnected() -> None:
    world = in_training(A, B)
    world.fleet.pause()
    world.now += LIMITS.run_s + 0.1
    assert closing(world) == RunClosed(RunOutcome.FAILED, "run limit of 3600 s passed")


# After the end


def test_a_stopped_run_ends_its_server_and_stops_clients_that_train_or_may_still_read_its_trigger() -> None:
    world = in_training(A, B, min_clients=1, join="open")
    world.publishes(client(C))
    world.acts()
    world.happens(StopRequested("enough"))
    actions = world.acts()
    assert actions[0] == RunClosed(RunOutcome.STOPPED, "enough")
    assert EndServer("enough") in actions
    stops = {each.client_mac: each.attempt for each in actions if isinstance(each, StopSent)}
    assert stops == {A: 1, B: 1, C: 1}


def test_a_client_that_trains_on_gets_the_stop_again_and_one_that_has_ended_does_not() -> None:
    world = in_training(A, B)
    world.happens(StopRequested("enough"))
    world.acts()
    world.publishes(client(B, last_run=ended(Outcome.STOPPED)))
    world.waits(LIMITS.trigger_retry_s)
    assert [each for each in world.acts() if isinstance(each, StopSent)] == [StopSent(A, 1, "run stopped: enough")]


def test_clients_of_a_completed_run_have_a_grace_to_end_by_themselves() -> None:
    world = in_training(A, B)
    world.publishes(server(ServerCondition.FINISHED))
    assert not any(isinstance(each, StopSent | EndServer) for each in world.acts())
    world.waits(LIMITS.close_grace_s)
    assert [type(each) for each in world.acts()][:3] == [EndServer, StopSent, StopSent]


def test_a_client_that_the_server_saw_failing_has_a_grace_to_publish_the_reason_itself() -> None:
    world = in_training(A, B)
    failed = ServerClient(status=M.FAILED, attempt=1, reason="ValueError: bad data")
    world.publishes(server(ServerCondition.RUNNING, clients={A: failed}))
    stops = [each.client_mac for each in world.acts() if isinstance(each, StopSent)]
    assert stops == [B]
    world.waits(LIMITS.close_grace_s)
    assert A in [each.client_mac for each in world.acts() if isinstance(each, StopSent)]


def test_a_client_that_comes_back_with_a_closed_run_gets_a_stop() -> None:
    world = in_training(A, B)
    world.publishes(will(A))
    world.happens(StopRequested("enough"))
    world.acts()
    world.waits(100)
    world.publishes(trains(A))
    assert StopSent(A, 1, "run stopped: enough") in world.acts()


# Properties: a seeded adversary plays clients, server and clock


def random_status(world: World, rng: Random) -> ClientStatus | ServerStatus:
    attempts = [member.attempt for member in world.run.members.values()] or [0]
    attempt, launch = rng.choice(attempts), max(0, world.run.launch - rng.randint(0, 1))
    mac, instance = rng.choice([A, B, C, D]), rng.choice(["i1", "i1", "i2"])
    match rng.randint(0, 7):
        case 0:
            return will(mac, instance=instance)
        case 1:
            last = ended(rng.choice(list(Outcome)), attempt, "interrupted", ReasonCode.INTERRUPTED)
            return client(mac, instance=instance, last_run=last)
        case 2:
            decision, why = rng.choice(list(Answer)), rng.choice([("busy with x", ReasonCode.BUSY), ("no", None)])
            return client(mac, instance=instance, answer=answer(attempt, decision, *why))
        case 3:
            said = ServerClient(status=rng.choice([M.TRAINING, M.LOST, M.FAILED, M.FINISHED]), attempt=attempt)
            return server(rng.choice(list(ServerCondition)[:3]), launch=launch, clients={mac: said})
        case 4:
            return server(ServerCondition.SERVER_OUT, launch=launch, reason="lost")
        case 5:
            return client(mac, instance=instance)
        case _:
            return trains(mac, attempt, launch, instance)


def play(world: World, rng: Random) -> None:
    match rng.randint(0, 9):
        case 0:
            world.happens(ServerExited(world.run.launch, "exit 1"))
        case 1:
            world.happens(ServerUnreachable(world.run.launch))
        case 2:
            world.fleet.pause()
        case 3 | 4:
            world.fleet.listen(world.now)
        case _:
            world.publishes(random_status(world, rng))
    world.waits(rng.choice([0.1, 3.0, 20.0]))


@st.composite
def played(draw: st.DrawFn) -> World:
    rng = Random(draw(st.integers(0, 2**32)))
    world = World.at_start(
        min_clients=rng.randint(1, 3),
        clients=rng.choice([None, (A, B, C)]),
        join=rng.choice(["open", "invited"]),
        is_adopted=rng.random() < 0.2,
    )
    for _ in range(draw(st.integers(0, 40))):
        world.acts()
        play(world, rng)
    return world


RUN_RECORD: TypeAdapter[Run] = TypeAdapter(Run)


@settings(deadline=None)
@given(played())
def test_the_plan_is_the_same_after_the_run_was_journaled_and_read_again(world: World) -> None:
    text = RUN_RECORD.dump_json(replace(world.run, members=dict(world.run.members)))
    found = RUN_RECORD.validate_json(text)
    assert found == world.run
    again = replace(found, members=MappingProxyType(dict(found.members)))
    assert plan(again, world.fleet, world.now) == plan(world.run, world.fleet, world.now)


@settings(deadline=None)
@given(played())
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(world: World) -> None:
    world.acts()
    left = [each for each in plan(world.run, world.fleet, world.now) if not isinstance(each, EndServer)]
    assert left == []


@settings(deadline=None)
@given(played(), st.integers(0, 2**32))
def test_every_run_ends_within_its_limit_whatever_happens(world: World, seed: int) -> None:
    rng = Random(seed)
    while world.now <= 1000.0 + LIMITS.run_s + 25:
        world.acts()
        play(world, rng)
    world.acts()
    assert world.run.outcome is not None
    assert world.run.reason


@settings(deadline=None)
@given(played())
def test_a_run_whose_clients_and_servers_publish_nothing_ends_long_before_its_limit(world: World) -> None:
    """Nobody says a word any more, and every server that is launched dies."""
    world.fleet.listen(world.now)
    began = world.now
    budget_s = 3 * (LIMITS.join_s + LIMITS.server_start_s + 3 * LIMITS.trigger_answer_s) + 400
    while not world.run.has_ended and world.now < began + budget_s:
        world.acts()
        world.waits(1.0)
        if world.run.launched_at is not None or world.run.spec.is_adopted:
            world.happens(ServerExited(world.run.launch, "exit 1"))
    assert world.run.has_ended


@settings(deadline=None)
@given(played())
def test_no_attempt_is_fired_at_two_daemons(world: World) -> None:
    meant: dict[tuple[str, int], set[str]] = {}
    for action in world.done:
        if isinstance(action, TriggerFired):
            meant.setdefault((action.client_mac, action.attempt), set()).add(action.instance)
    assert all(len(instances) == 1 for instances in meant.values())


@settings(deadline=None)
@given(played())
def test_attempts_stay_within_their_limit(world: World) -> None:
    assert all(member.last_attempt <= LIMITS.max_attempts for member in world.run.members.values())
    assert world.run.launch <= LIMITS.max_launches or world.run.spec.is_adopted


def test_planning_changes_neither_run_nor_fleet() -> None:
    run = Run(spec=spec(), created_at=0.0)
    fleet = Fleet()
    assert plan(run, fleet, 1.0) == plan(run, fleet, 1.0)
    assert apply_all(run, [action for action in plan(run, fleet, 1.0) if not isinstance(action, EndServer)], 1.0) != run
    assert run == Run(spec=spec(), created_at=0.0)


def test_a_member_that_was_given_up_is_not_planned_for() -> None:
    world = World.at_start(min_clients=1, clients=(A, B))
    world.acts()
    world.publishes(server(), client(A, heartbeat_s=9999), client(B, heartbeat_s=9999))
    for _ in range(60):
        world.acts()
        world.waits(2)
        world.publishes(trains(B))
    assert MemberGaveUp(A, M.FAILED, "after 3 attempts: no answer to its trigger") in world.done
    world.publishes(client(A))
    assert world.acts() == []


def test_a_server_whose_host_cannot_be_asked_is_not_replaced_and_the_run_reports_it() -> None:
    world = in_training(A, B)
    world.happens(ServerHostLost(1, "gpu1 cannot be asked"))
    world.happens(ServerUnreachable(1))
    world.waits(20)
    assert [action for action in world.acts() if isinstance(action, ServerLaunched)] == []
    assert waits_for(world.run, world.fleet) == "gpu1 cannot be asked"
    world.happens(ServerHostLost(1, None))
    assert waits_for(world.run, world.fleet) is None
    assert ServerLaunched(2) in world.acts()


def test_the_time_to_start_begins_anew_when_the_host_answers_again() -> None:
    world = World.at_start()
    world.acts()
    world.happens(ServerHostLost(1, "gpu1 cannot be asked"))
    world.waits(600)
    world.happens(ServerHostLost(1, None))
    assert world.acts() == []
    world.waits(LIMITS.server_start_s - 1)
    world.happens(ServerHostLost(1, None))
    assert world.acts() == []
    world.waits(2)
    assert ServerLaunched(2) in world.acts()


def test_a_late_server_whose_host_cannot_be_asked_is_waited_for() -> None:
    world = World.at_start()
    world.acts()
    world.happens(ServerHostLost(1, "gpu1 cannot be asked"))
    world.waits(600)
    assert world.acts() == []
    world.happens(ServerExited(1, "it never started"))
    world.waits(3)
    assert ServerLaunched(2) in world.acts()
