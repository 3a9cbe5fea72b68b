"""The client machine: what it takes up, what it answers, and what no order of events can make it do."""

import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fedops_mqtt.core.client import Client, Identity, Step, apply, last_will, restore, snapshot
from fedops_mqtt.core.client_state import (
    MAX_ANSWERS,
    ClientState,
    Event,
    LocalStart,
    PhaseReport,
    ServerMoved,
    ShutDown,
    ShutdownRequested,
    StopTraining,
    TrainingEnded,
)
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.protocol import (
    Answer,
    ClientCondition,
    Outcome,
    Phase,
    ReasonCode,
    RunStart,
    StartTrigger,
    StopTrigger,
    decode,
    encode,
    topics,
    utc_now,
)

MAC = "02:00:00:00:00:01"
ME = Identity(task_id="digits", client_mac=MAC, client_name="pi", instance="a")
AT = utc_now()
FACTS = TypeAdapter(ClientState)


def trigger(**changes: object) -> StartTrigger:
    said = {"run_id": "r1", "attempt": 1, "launch": 1, "term": 1, "task_id": "digits", "client_mac": MAC}
    return StartTrigger.model_validate(said | {"server_ip": "127.0.0.1:9", "at": AT} | changes)


def stop(**changes: object) -> StopTrigger:
    said = {"run_id": "r1", "attempt": 1, "term": 1, "task_id": "digits", "client_mac": MAC, "at": AT}
    return StopTrigger.model_validate(said | changes)


def ended(outcome: Outcome | None = Outcome.FINISHED, **changes: object) -> TrainingEnded:
    return replace(TrainingEnded(outcome=outcome), **changes)  # type: ignore[arg-type]


def after(*events: Event, client: Client | None = None) -> Step:
    step = Step(client=client or Client(identity=ME))
    for event in events:
        step = apply(step.client, event)
    return step


def restarted(client: Client, instance: str = "b") -> Client:
    """The next daemon on this device: only what went through the journal is left."""
    return restore(replace(ME, instance=instance), FACTS.validate_json(FACTS.dump_json(client.facts)))


def test_a_trigger_starts_training_and_is_answered() -> None:
    step = after(trigger(token="secret", gl_model=4, num_clients=3))
    assert isinstance(step.action, RunStart)
    assert (step.action.run_id, step.action.token) == ("r1", "secret")
    assert "secret" not in repr(step)
    client = step.client
    assert client.condition is ClientCondition.TRAIN_STARTED
    assert client.facts.last_trigger is not None
    assert client.facts.last_trigger.answer is Answer.ACCEPTED
    assert (client.facts.gl_model, client.server_ip) == (4, "127.0.0.1:9")


def test_the_same_trigger_again_gets_the_same_answer_and_starts_nothing() -> None:
    first = after(trigger())
    again = apply(first.client, trigger())
    assert again.action is None
    assert again.client == first.client
    finished = apply(first.client, ended()).client
    assert apply(finished, trigger()).action is None
    assert apply(finished, trigger()).decision == first.decision


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"client_mac": "02:00:00:00:00:02"}, "client_mac"),
        ({"task_id": "other"}, "task_id"),
        ({"run_id": "r2", "instance": "z"}, "instance z"),
        ({"run_id": "r2", "term": 0}, "term 0"),
        ({"run_id": "r2"}, "busy with run r1"),
        ({"attempt": 2}, "busy with run r1"),
        ({"attempt": 0}, "superseded"),
    ],
)
def test_a_trigger_that_does_not_fit_is_rejected_with_the_reason(changes: dict[str, object], reason: str) -> None:
    step = after(trigger(), trigger(**changes))
    assert step.action is None
    assert step.decision is not None
    assert step.decision.answer is Answer.REJECTED
    assert reason in (step.decision.reason or "")
    assert step.client.run is not None


def test_a_finished_run_is_not_trained_again_but_a_failed_one_is_at_a_higher_attempt() -> None:
    assert after(trigger(), ended(), trigger(attempt=2)).action is None
    assert isinstance(after(trigger(), ended(Outcome.FAILED), trigger(attempt=2)).action, RunStart)


def test_a_higher_launch_of_the_run_in_hand_re_aims() -> None:
    step = after(trigger(gl_model=3), trigger(launch=2, server_ip="127.0.0.1:10", gl_model=4))
    assert step.client.facts.gl_model == 4
    assert step.action == ServerMoved(server_ip="127.0.0.1:10", launch=2)
    assert step.client.run is not None
    assert step.client.run.launch == 2
    assert apply(step.client, trigger()).action is None
    assert apply(step.client, trigger()).client.server_ip == "127.0.0.1:10"


def test_a_stop_ends_the_training_and_publishes_stopped() -> None:
    step = after(trigger(), stop(reason="by hand"))
    assert step.action == StopTraining(reason="by hand")
    assert apply(step.client, stop()).action is None
    client = apply(step.client, ended(Outcome.FAILED, reason="killed by SIGTERM")).client
    assert client.facts.last_run is not None
    assert (client.facts.last_run.outcome, client.facts.last_run.reason) == (Outcome.STOPPED, "by hand")
    assert (client.condition, client.reason) == (ClientCondition.TRAIN_FAILED, "stopped")


def test_a_training_that_finished_before_its_stop_took_hold_is_finished() -> None:
    client = after(trigger(), stop(), ended()).client
    assert client.condition is ClientCondition.TRAIN_FINISHED


def test_a_stop_that_overtakes_its_start_prevents_it_even_across_a_restart() -> None:
    client = after(stop()).client
    assert apply(client, trigger()).action is None
    step = apply(restarted(client), trigger())
    assert step.action is None
    assert step.decision is not None
    assert step.decision.reason == "stopped"
    assert isinstance(apply(client, trigger(attempt=2)).action, RunStart)


def test_a_stop_of_a_lower_term_is_ignored() -> None:
    assert after(trigger(term=2), stop(term=1)).action is None


def test_a_training_in_hand_is_interrupted_after_a_restart_and_the_daemon_is_online() -> None:
    client = restarted(after(trigger()).client)
    assert client.facts.last_run is not None
    assert client.facts.last_run.outcome is Outcome.FAILED
    assert client.facts.last_run.reason_code is ReasonCode.INTERRUPTED
    assert client.condition is ClientCondition.ONLINE
    assert client.run is None
    assert isinstance(apply(client, trigger(attempt=2, instance="b")).action, RunStart)


def test_joining_a_run_that_has_ended_is_a_rejection_and_no_failure() -> None:
    client = after(trigger(), ended(None, reason="run is over")).client
    assert client.facts.last_run is None
    assert client.facts.last_trigger is not None
    assert (client.facts.last_trigger.answer, client.facts.last_trigger.reason) == (Answer.REJECTED, "run is over")
    assert client.condition is ClientCondition.ONLINE


def test_an_app_whose_error_begins_with_interrupted_has_failed_by_itself() -> None:
    client = after(trigger(), ended(Outcome.FAILED, reason="interrupted: system call")).client
    assert client.facts.last_run is not None
    assert (client.facts.last_run.reason, client.facts.last_run.reason_code) == ("interrupted: system call", None)


def test_a_rejection_that_passes_has_a_code_and_the_stop_of_a_start_has_none() -> None:
    assert rejection(after(trigger(), trigger(run_id="r2"))) == ("busy with run r1, attempt 1", ReasonCode.BUSY)
    assert rejection(after(ShutdownRequested(), trigger())) == ("shutting down", ReasonCode.SHUTTING_DOWN)
    assert rejection(after(stop(), trigger())) == ("stopped", None)
    at_home = after(trigger(), LocalStart(server_ip="127.0.0.1:10")).decision
    assert at_home is not None
    assert at_home.reason_code is ReasonCode.BUSY


def rejection(step: Step) -> tuple[str | None, ReasonCode | None]:
    last = step.client.facts.last_trigger
    assert last is not None
    assert last.answer is Answer.REJECTED
    return last.reason, last.reason_code


def test_leaving_interrupts_what_trains_and_takes_nothing_new() -> None:
    step = after(trigger(), ShutdownRequested())
    assert isinstance(step.action, StopTraining)
    assert step.action.reason_code is ReasonCode.INTERRUPTED
    left = after(ended(Outcome.FAILED), ShutDown(reason="shutdown"), client=step.client).client
    assert (left.condition, left.reason) == (ClientCondition.CLIENT_OUT, "shutdown")
    assert apply(left, trigger(run_id="r2")).action is None


def test_leaving_at_once_publishes_that_the_training_was_interrupted() -> None:
    client = after(trigger(), ShutDown(reason="shutdown")).client
    assert client.condition is ClientCondition.CLIENT_OUT
    assert client.run is None
    assert client.facts.last_run is not None
    assert client.facts.last_run.reason_code is ReasonCode.INTERRUPTED


def test_a_local_start_is_the_same_start_without_a_run_id() -> None:
    start = LocalStart(server_ip="127.0.0.1:9")
    step = after(start)
    assert isinstance(step.action, RunStart)
    assert step.action.transport is None
    again = apply(step.client, start)
    assert (again.action, again.client) == (None, step.client)
    assert again.decision is not None
    assert again.decision.answer is Answer.ACCEPTED
    other = apply(step.client, replace(start, server_ip="127.0.0.1:10")).decision
    assert other is not None
    assert other.answer is Answer.REJECTED
    named = apply(step.client, PhaseReport(phase=Phase.TRAINING, round=1, run_id="r7")).client
    assert named.run is not None
    assert named.run.run_id == "r7"


def test_a_training_that_is_named_or_launched_again_while_it_ends_has_ended() -> None:
    named = after(LocalStart(server_ip="127.0.0.1:9"), PhaseReport(phase=Phase.TRAINING, run_id="r7"), ended()).client
    assert named.facts.last_run is not None
    assert (named.run, named.facts.last_run.run_id) == (None, "r7")
    again = after(trigger(), trigger(attempt=2, launch=2), ended()).client
    assert again.facts.last_run is not None
    assert (again.run, again.facts.last_run.attempt) == (None, 2)


@pytest.mark.parametrize(("said", "known"), [(7, 7), (0, 0), (None, 4)])
def test_a_local_start_has_the_number_of_the_model_that_its_manager_gives_or_the_last_trigger(
    said: int | None, known: int
) -> None:
    step = after(trigger(gl_model=4), ended(), LocalStart(server_ip="127.0.0.1:9", gl_model=said))
    assert isinstance(step.action, RunStart)
    assert (step.action.gl_model, step.client.facts.gl_model) == (known, known)


def test_memory_is_bounded_and_rejections_are_forgotten_first() -> None:
    client = after(trigger()).client
    for number in range(2 * MAX_ANSWERS):
        client = apply(client, trigger(run_id=f"busy-{number}")).client
        client = apply(client, stop(run_id=f"gone-{number}")).client
    assert len(client.facts.answers) == MAX_ANSWERS
    assert len(client.facts.stop_records) == MAX_ANSWERS
    assert apply(client, trigger()).action is None


def test_a_status_has_every_field_and_a_will_only_the_identity() -> None:
    client = after(trigger(), ended(Outcome.FAILED, reason="x" * 100_000)).client
    status = snapshot(client, Stamp(7, 3), at=AT, heartbeat_s=120, agent={"python": "3.11"})
    topic = topics.client_status("digits", MAC)
    assert decode(topic, encode(status)) == status
    will = last_will(ME, Stamp(7, 9), at=AT, heartbeat_s=120)
    assert status.heartbeat_s == will.heartbeat_s == 120
    assert (will.status, will.reason) == (ClientCondition.CLIENT_OUT, "lost")
    assert {"run", "last_run", "last_trigger"}.isdisjoint(json.loads(encode(will)))


# Properties

NUMBERS = st.integers(0, 3)
RUNS = st.sampled_from(["r1", "r2"])
INSTANCES = st.sampled_from([None, "a", "b"])
TRIGGERS = st.builds(trigger, run_id=RUNS, attempt=NUMBERS, launch=NUMBERS, term=NUMBERS, instance=INSTANCES)
STOPS = st.builds(stop, run_id=RUNS, attempt=NUMBERS, term=NUMBERS)
ENDS = st.builds(TrainingEnded, outcome=st.sampled_from([None, *Outcome]), reason=st.just("why"))
LOCALS = st.builds(LocalStart, server_ip=st.sampled_from(["h:1", "h:2"]))
EVENTS = st.one_of(TRIGGERS, STOPS, ENDS, LOCALS)


@given(st.lists(EVENTS, max_size=20), EVENTS)
def test_applying_twice_is_applying_once(before: list[Event], event: Event) -> None:
    once = after(*before, event)
    twice = apply(once.client, event)
    assert twice.client == once.client
    assert not isinstance(twice.action, RunStart)


@given(st.lists(st.one_of(EVENTS, st.just("restart"), st.just("end")), max_size=60), st.randoms())
def test_training_starts_at_most_once_per_run_and_attempt(script: list[Event | str], random: Random) -> None:
    client, starts = Client(identity=ME), list[tuple[str, int]]()
    replay = list(script)
    random.shuffle(replay)
    for number, event in enumerate(script + replay):
        if event == "restart":
            client = restarted(client, f"n{number}")
        elif event == "end" and client.facts.active_training:
            client = apply(client, ended(Outcome.FAILED)).client
        elif not isinstance(event, str):
            step = apply(client, event)
            client = step.client
            if isinstance(step.action, RunStart):
                starts.append((step.action.run_id, step.action.attempt))
    assert len(starts) == len(set(starts))


@given(st.lists(EVENTS, max_size=30))
def test_facts_survive_the_journal_as_they_are(script: list[Event]) -> None:
    client = after(*script).client if script else Client(identity=ME)
    assert FACTS.validate_json(FACTS.dump_json(client.facts)) == client.facts


@given(st.lists(EVENTS, max_size=30))
def test_a_condition_is_training_exactly_while_there_is_a_current_run(script: list[Event]) -> None:
    client = after(*script).client if script else Client(identity=ME)
    assert (client.condition is ClientCondition.TRAIN_STARTED) == (client.run is not None)
