from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_parts import A, B, C, World, answer, client, ended, hand, interrupted, server, spec, trains, will

from fedops_mqtt.core.fleet import StatusView
from fedops_mqtt.core.run import Run, apply, apply_all
from fedops_mqtt.core.run_member import (
    ClientChosen,
    MemberGaveUp,
    RunClosed,
    RunEvent,
    ServerExited,
    ServerLaunched,
    ServerUnreachable,
    StopRequested,
    StopSent,
    TriggerFired,
)
from fedops_mqtt.protocol import (
    Answer,
    ClientStatus,
    MemberCondition,
    Outcome,
    Phase,
    ReasonCode,
    RunCondition,
    RunOutcome,
    ServerClient,
    ServerCondition,
)

M = MemberCondition


def in_training(*macs: str) -> World:
    world = World.at_start(min_clients=len(macs))
    world.acts()
    world.reaches_training(*macs)
    return world


def said_of(
    mac: str, status: M, attempt: int = 1, reason: str | None = None, code: ReasonCode | None = None
) -> dict[str, ServerClient]:
    return {mac: ServerClient(status=status, attempt=attempt, reason=reason, reason_code=code)}


def test_a_run_goes_from_pending_over_starting_to_running_and_finished() -> None:
    world = World.at_start()
    seen = [world.run.status]
    world.acts()
    seen.append(world.run.status)
    world.reaches_training(A, B)
    seen.append(world.run.status)
    world.publishes(server(ServerCondition.FINISHED, reason="all rounds done"))
    world.acts()
    seen.append(world.run.status)
    assert seen == [RunCondition.PENDING, RunCondition.STARTING, RunCondition.RUNNING, RunCondition.FINISHED]
    assert (world.run.outcome, world.run.reason) == (RunOutcome.COMPLETED, "all rounds done")


def test_trigger_to_training_is_from_the_first_firing_to_the_first_sign_of_having_joined() -> None:
    world = World.at_start(min_clients=1)
    world.acts()
    world.publishes(client(A))
    world.publishes(server())
    world.acts()
    fired_at = world.now
    world.waits(1)
    world.publishes(client(A, hand=hand(phase=Phase.JOINING), answer=answer()))
    assert world.run.members[A].training_at is None
    world.waits(1)
    world.publishes(trains(A))
    world.waits(1)
    world.publishes(trains(A))
    member = world.run.members[A]
    assert (member.first_fired_at, member.training_at) == (fired_at, fired_at + 2)


def test_a_client_out_on_the_bus_removes_no_member_of_a_run_whose_server_lives() -> None:
    world = in_training(A, B)
    world.receives(will(A, epoch=9))
    assert world.run.members[A].status is M.TRAINING


def test_a_client_out_before_it_trains_is_lost_and_training_again_revives_it() -> None:
    world = World.at_start(min_clients=1)
    world.acts()
    world.publishes(client(A), server())
    world.acts()
    world.publishes(will(A))
    assert (world.run.members[A].status, world.run.members[A].reason) == (M.LOST, "lost")
    world.publishes(trains(A))
    assert world.run.members[A].status is M.TRAINING


def test_a_member_that_its_server_lost_is_lost_whatever_its_daemon_reports() -> None:
    world = in_training(A, B)
    world.publishes(server(ServerCondition.RUNNING, clients=said_of(A, M.LOST, reason="line closed")))
    world.publishes(trains(A))
    assert (world.run.members[A].status, world.run.members[A].reason) == (M.LOST, "line closed")


def test_a_server_that_has_a_client_back_revives_it() -> None:
    world = in_training(A, B)
    world.publishes(server(ServerCondition.RUNNING, clients=said_of(A, M.LOST)))
    world.publishes(server(ServerCondition.RUNNING, clients=said_of(A, M.TRAINING)))
    assert world.run.members[A].status is M.TRAINING
    assert world.run.members[A].lost_at is None


def test_a_server_status_about_an_earlier_attempt_changes_nothing() -> None:
    world = in_training(A, B)
    world.publishes(server(ServerCondition.RUNNING, clients=said_of(A, M.LOST, attempt=0)))
    assert world.run.members[A].status is M.TRAINING


def test_the_clients_own_outcome_outweighs_what_the_server_guessed() -> None:
    world = in_training(A, B)
    world.publishes(server(ServerCondition.RUNNING, clients=said_of(A, M.LOST)))
    world.publishes(client(A, last_run=ended(Outcome.FAILED, reason="ValueError: bad")))
    assert (world.run.members[A].status, world.run.members[A].reason) == (M.FAILED, "ValueError: bad")


@pytest.mark.parametrize("guess", [M.FAILED, M.STOPPED])
@pytest.mark.parametrize("is_server_first", [True, False])
def test_an_interrupted_training_is_lost_whatever_its_server_reports(guess: M, is_server_first: bool) -> None:
    """The daemon leaves: its training process says goodbye on the line, the daemon on the bus, in any order."""
    world = in_training(A, B)
    line = server(ServerCondition.RUNNING, clients=said_of(A, guess, 1, "interrupted", ReasonCode.INTERRUPTED))
    bus = client(A, instance="i2", last_run=interrupted())
    for word in (line, bus) if is_server_first else (bus, line):
        world.publishes(word)
        assert (world.run.members[A].status, world.run.members[A].reason) == (M.LOST, "interrupted")


def test_what_a_server_guesses_of_a_client_that_was_interrupted_is_no_failure() -> None:
    world = in_training(A, B)
    world.publishes(client(A, instance="i2", last_run=interrupted(reason="interrupted: the process is gone")))
    world.publishes(server(ServerCondition.RUNNING, clients=said_of(A, M.FAILED, reason="the connection is gone")))
    assert (world.run.members[A].status, world.run.members[A].reason) == (M.LOST, "interrupted: the process is gone")


def test_a_failure_that_a_server_reports_is_one_whatever_its_text() -> None:
    world = in_training(A, B)
    world.publishes(server(ServerCondition.RUNNING, clients=said_of(A, M.FAILED, reason="interrupted: by the app")))
    assert world.run.members[A].status is M.FAILED


@pytest.mark.parametrize(
    ("reason", "code", "status"),
    [
        ("busy with run x", ReasonCode.BUSY, M.LOST),
        ("shutting down", ReasonCode.SHUTTING_DOWN, M.LOST),
        ("any text", ReasonCode.BUSY, M.LOST),
        ("busy with run x", None, M.REJECTED),
        ("not approved", ReasonCode.APP_NOT_APPROVED, M.REJECTED),
        ("client_mac differs", None, M.REJECTED),
    ],
)
def test_a_rejection_that_passes_is_a_loss_and_any_other_is_final(
    reason: str, code: ReasonCode | None, status: M
) -> None:
    world = World.at_start(min_clients=1)
    world.acts()
    world.publishes(client(A), server())
    world.acts()
    world.publishes(client(A, answer=answer(decision=Answer.REJECTED, reason=reason, code=code)))
    assert world.run.members[A].status is status


def test_a_rejection_by_another_daemon_than_the_one_that_was_meant_is_no_answer() -> None:
    world = World.at_start(min_clients=1)
    world.acts()
    world.publishes(client(A), server())
    world.acts()
    world.publishes(client(A, instance="i2", answer=answer(decision=Answer.REJECTED, reason="meant for instance i1")))
    assert world.run.members[A].status is M.LOST


def test_an_earlier_firing_that_was_answered_late_is_the_one_in_force() -> None:
    world = World.at_start(min_clients=1)
    world.acts()
    world.publishes(client(A), server())
    world.acts()
    world.waits(31)
    world.acts()
    assert world.run.members[A].attempt == 2
    world.publishes(trains(A, attempt=1))
    busy = answer(2, Answer.REJECTED, "busy with run run-1, attempt 1", ReasonCode.BUSY)
    world.publishes(client(A, hand=hand(1), answer=busy))
    assert (world.run.members[A].status, world.run.members[A].attempt) == (M.TRAINING, 1)


def test_a_final_status_stands_when_the_servers_will_comes_after_it() -> None:
    world = in_training(A, B)
    world.publishes(server(ServerCondition.FINISHED), server(ServerCondition.SERVER_OUT, reason="lost"))
    world.acts()
    assert world.run.outcome is RunOutcome.COMPLETED


def test_a_late_status_does_not_replace_the_final_status_that_was_read_from_disk() -> None:
    world = in_training(A, B)
    world.happens(server(ServerCondition.FINISHED, reason="all rounds done"))
    told = world.run
    world.happens(server(ServerCondition.RUNNING), server(ServerCondition.FINISHED, reason="all rounds done"))
    assert world.run == told


def test_a_servers_will_alone_is_not_its_death() -> None:
    world = in_training(A, B)
    world.publishes(server(ServerCondition.SERVER_OUT, reason="lost"))
    world.waits(300)
    world.acts()
    assert (world.run.has_ended, world.run.launch, world.run.server_ip) == (False, 1, None)
    assert world.run.members[A].status is M.TRAINING


def test_statuses_of_an_earlier_launch_or_another_run_are_ignored() -> None:
    world = in_training(A)
    world.happens(ServerLaunched(2))
    before = world.run
    world.happens(server(ServerCondition.FINISHED, launch=1), server(ServerCondition.FAILED, run_id="run-0"))
    assert world.run == before


def test_a_client_that_came_to_an_open_server_by_itself_is_a_member() -> None:
    world = World.at_start(join="open", min_clients=1)
    world.acts()
    world.publishes(server(ServerCondition.RUNNING, clients=said_of(C, M.TRAINING, attempt=7)))
    assert (world.run.members[C].status, world.run.members[C].attempt) == (M.TRAINING, 7)


# Properties

macs = st.sampled_from([A, B, C])
attempts = st.integers(0, 3)
launches = st.integers(0, 3)
reasons = st.sampled_from([None, "interrupted", "busy", "shutting down", "lost", "ValueError"])
codes = st.sampled_from([None, ReasonCode.INTERRUPTED, ReasonCode.BUSY, ReasonCode.TOO_FEW_CLIENTS])


@st.composite
def client_words(draw: st.DrawFn) -> StatusView[ClientStatus]:
    optional = lambda strategy: draw(st.none() | strategy)  # noqa: E731
    status = client(
        draw(macs),
        instance=draw(st.sampled_from(["i1", "i2"])),
        status=draw(st.sampled_from(["online", "train-started", "client-out"])),
        reason=draw(reasons),
        hand=optional(st.builds(hand, attempts, launches, st.sampled_from(Phase), st.sampled_from(["run-1", "run-2"]))),
        last_run=optional(st.builds(ended, st.sampled_from(Outcome), attempts, reasons, codes)),
        answer=optional(st.builds(answer, attempts, st.sampled_from(Answer), reasons, codes)),
    )
    return StatusView(status=status, heard_at=0.0, since=0.0, is_silent=draw(st.booleans()))


server_clients: Any = st.dictionaries(
    macs, st.builds(ServerClient, status=st.sampled_from(M), attempt=attempts, reason_code=codes)
)
server_words = st.builds(
    server, st.sampled_from(ServerCondition), launch=launches, reason=reasons, clients=server_clients
)
own_words = st.one_of(
    st.builds(ClientChosen, macs),
    st.builds(TriggerFired, macs, st.integers(1, 3), st.sampled_from(["i1", "i2"]), launches),
    st.builds(StopSent, macs),
    st.builds(MemberGaveUp, macs, st.sampled_from([M.LOST, M.FAILED]), st.just("why")),
    st.builds(ServerLaunched, launches),
    st.builds(ServerExited, launches, st.just("exit 1")),
    st.builds(ServerUnreachable, launches),
    st.builds(StopRequested, st.just("enough")),
    st.builds(RunClosed, st.sampled_from(RunOutcome), st.just("over")),
)
run_events: st.SearchStrategy[RunEvent] = st.one_of(client_words(), server_words, own_words)


def after(events: list[RunEvent], **changes: object) -> Run:
    run = Run(spec=spec(**changes), created_at=0.0)
    for number, event in enumerate(events):
        run = apply(run, event, float(number))
    return run


@given(st.lists(run_events, max_size=25), run_events)
def test_applying_twice_is_applying_once(events: list[RunEvent], event: RunEvent) -> None:
    once = apply(after(events), event, 99.0)
    assert apply(once, event, 99.0) == once


@given(st.lists(run_events, max_size=25), st.integers(0, 25))
def test_many_events_at_once_are_the_same_as_one_after_the_other(events: list[RunEvent], at: int) -> None:
    run = after(events[:at])
    together = apply_all(run, events[at:], 50.0)
    for event in events[at:]:
        run = apply(run, event, 50.0)
    assert together == run


@given(st.lists(run_events, max_size=25), st.lists(run_events, max_size=10))
def test_a_run_that_has_its_outcome_keeps_it(events: list[RunEvent], more: list[RunEvent]) -> None:
    closed = apply(after(events), RunClosed(RunOutcome.FAILED, "first"), 50.0)
    later = apply_all(closed, more, 60.0)
    assert (later.outcome, later.reason, later.ended_at) == (closed.outcome, closed.reason, closed.ended_at)


@given(st.lists(run_events, max_size=25), run_events)
def test_nothing_that_happens_changes_the_run_it_happens_to(events: list[RunEvent], event: RunEvent) -> None:
    run = after(events)
    members = dict(run.members)
    apply(run, event, 99.0)
    assert dict(run.members) == members


@given(st.lists(run_events, max_size=30))
def test_launches_and_attempts_only_grow(events: list[RunEvent]) -> None:
    run = after([])
    for number, event in enumerate(events):
        later = apply(run, event, float(number))
        assert later.launch >= run.launch
        for mac, member in run.members.items():
            assert later.members[mac].last_attempt >= member.last_attempt
        run = later
