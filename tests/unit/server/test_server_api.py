import json
from dataclasses import replace
from typing import Any

import pytest

from fedops_mqtt.aggregation.status_publisher import ServerSnapshot, client_of
from fedops_mqtt.line.members import LineMember
from fedops_mqtt.protocol import MemberCondition, Outcome, Phase, ServerCondition, ServerMetrics, decode, encode, topics
from fedops_mqtt.server.server_api import NoActiveServerError, ServerAPI, publishing_through

SNAPSHOT = ServerSnapshot(
    task_id="t", run_id="r", launch=2, instance="i", heartbeat_s=60.0, agent={"flwr": "1.41"}, round=3, gl_model=4
)


class Tape:
    """A voice that keeps what it is given: the narrow Protocol that ServerAPI asks for."""

    def __init__(self) -> None:
        self.snapshot = SNAPSHOT
        self.told: list[ServerMetrics] = []

    def update(self, *, is_urgent: bool = True, **changes: Any) -> None:
        self.snapshot = replace(self.snapshot, **changes)

    def publish_metrics(self, metrics: ServerMetrics) -> None:
        self.told.append(metrics)


def test_fedops_status_becomes_the_servers_status() -> None:
    tape = Tape()
    api = ServerAPI("t", tape)
    api.put_server_status(json.dumps({"FLSeReady": True, "GL_Model_V": 9, "S3_bucket": "x"}))
    assert (tape.snapshot.status, tape.snapshot.gl_model) == (ServerCondition.READY, 9)
    api.put_server_status({"FLSeReady": False})
    assert tape.snapshot.status is ServerCondition.FAILED
    api.put_fl_round_fin()
    assert tape.snapshot.status is ServerCondition.FINISHED


def test_fedops_evaluation_and_times_become_metrics_under_their_own_names() -> None:
    tape = Tape()
    api = ServerAPI("t", tape)
    said = {
        "fl_task_id": "t",
        "round": 2,
        "gl_loss": 0.5,
        "gl_accuracy": 0.75,
        "run_time_by_round": 1.5,
        "gl_model_v": 4,
    }
    api.put_gl_model_evaluation(json.dumps(said))
    api.put_server_time_result({"server_operation_time": 12.5})
    first, second = tape.told
    assert (first.round, first.duration_s, first.gl_model) == (2, 1.5, 4)
    assert first.metrics == {"gl_loss": 0.5, "gl_accuracy": 0.75, "run_time_by_round": 1.5, "gl_model_v": 4.0}
    assert (second.round, second.run_id, second.launch, second.metrics) == (3, "r", 2, {"server_operation_time": 12.5})


def test_made_as_fedops_makes_it_it_publishes_through_the_server_of_this_process() -> None:
    tape = Tape()
    with publishing_through(tape):
        ServerAPI("t").put_fl_round_fin()
    assert tape.snapshot.status is ServerCondition.FINISHED
    with pytest.raises(NoActiveServerError, match="through an FLServer"):
        ServerAPI("t")


@pytest.mark.parametrize("text", ["[1]", "not json"])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON object|Expecting value"):
        ServerAPI("t", Tape()).put_gl_model_evaluation(text)


def test_status_and_will_go_over_the_wire() -> None:
    topic = topics.server_status("t")
    member = LineMember(
        mac="02:00:00:00:00:01", node_id=5, instance="d", attempt=1, session="s", is_present=True, round=2
    )
    snapshot = replace(SNAPSHOT, clients={member.mac: client_of(member)}, reason="x" * 10_000)
    for message in (snapshot.to_status(7, 1), snapshot.to_will(7, 2**63 - 1)):
        assert decode(topic, encode(message)) == message
    assert snapshot.to_will(7, 1).clients == {}


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({"is_present": True}, MemberCondition.TRAINING),
        ({"is_present": False}, MemberCondition.LOST),
        ({"outcome": Outcome.FINISHED}, MemberCondition.FINISHED),
        ({"outcome": Outcome.FAILED}, MemberCondition.FAILED),
        ({"outcome": Outcome.STOPPED}, MemberCondition.STOPPED),
    ],
)
def test_the_condition_of_a_member_is_published(facts: dict[str, Any], status: MemberCondition) -> None:
    member = LineMember(mac="02:00:00:00:00:01", node_id=5, instance="d", attempt=3, session="s", phase=Phase.TRAINING)
    said = client_of(replace(member, **facts))
    assert (said.status, said.attempt) == (status, 3)
    assert said.phase == (None if "outcome" in facts else Phase.TRAINING)


def test_any_value_passed_to_fedops_calls_is_published_and_nothing_raises() -> None:
    tape = Tape()
    api = ServerAPI("t", tape)
    api.put_gl_model_evaluation({"round": -1, "gl_loss": 10**400, "run_time_by_round": "fast", "gl_model_v": "x"})
    api.put_gl_model_evaluation({**{f"m{number}": 1 for number in range(500)}, "round": 2**70})
    api.put_server_status({"GL_Model_V": -5})
    assert [(each.round, each.duration_s, each.gl_model) for each in tape.told] == [(3, None, 4), (3, None, 4)]
    assert len(tape.told[1].metrics) == 256
    assert tape.snapshot.gl_model == 0
