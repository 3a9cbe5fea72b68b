import pytest

from fedops_mqtt.line.errors import LineRefusedError
from fedops_mqtt.line.members import ChangeKind, Members
from fedops_mqtt.protocol import Outcome, Phase, ReasonCode

MAC = "aa:bb:cc:dd:ee:01"


@pytest.fixture
def members() -> Members:
    members = Members()
    members.join(MAC, "i1", 1, "s1")
    members.attach("s1")
    return members


def kinds(changes: list) -> list[ChangeKind]:
    return [change.kind for change in changes]


def test_a_member_is_present_from_its_control_request_on() -> None:
    members = Members()
    assert members.join(MAC, "i1", 1, "s1") is None
    assert members.present_node_ids() == []
    assert kinds(members.attach("s1")) == ["joined"]
    assert members.present_node_ids() == [members.by_mac[MAC].node_id]
    assert members.attach("s1") == []


def test_a_lost_member_comes_back_with_the_same_attempt(members: Members) -> None:
    assert kinds(members.detach("s1", "connection closed")) == ["lost"]
    assert members.present_node_ids() == []
    members.check_join(MAC, "i1", 1)
    assert members.join(MAC, "i1", 1, "s2") is None
    assert kinds(members.attach("s2")) == ["rejoined"]
    assert members.by_mac[MAC].reason is None


def test_an_old_session_that_ends_late_loses_no_client(members: Members) -> None:
    members.join(MAC, "i1", 1, "s2")
    members.attach("s2")
    assert members.detach("s1", "connection closed") == []
    assert members.by_mac[MAC].is_present


def test_a_higher_attempt_evicts_a_lower_one(members: Members) -> None:
    members.check_join(MAC, "i2", 2)
    evicted = members.join(MAC, "i2", 2, "s2")
    assert evicted is not None
    assert evicted.attempt == 1
    assert kinds(members.attach("s2")) == ["joined"]
    assert members.detach("s1", "connection closed") == []


@pytest.mark.parametrize(("instance", "attempt"), [("i1", 0), ("i2", 1), ("i2", 0)])
def test_a_lower_attempt_or_another_instance_is_refused(members: Members, instance: str, attempt: int) -> None:
    with pytest.raises(LineRefusedError) as refused:
        members.check_join(MAC, instance, attempt)
    assert (refused.value.status, refused.value.code) == (409, "evicted")


def test_an_ended_attempt_cannot_join_but_a_higher_one_can(members: Members) -> None:
    assert kinds(members.end(MAC, Outcome.FAILED, "ValueError: bad")) == ["failed"]
    with pytest.raises(LineRefusedError) as refused:
        members.check_join(MAC, "i1", 1)
    assert (refused.value.status, refused.value.outcome, refused.value.reason) == (410, "failed", "ValueError: bad")
    members.check_join(MAC, "i1", 2)
    members.join(MAC, "i1", 2, "s2")
    assert members.by_mac[MAC].outcome is None


def test_the_first_outcome_stands(members: Members) -> None:
    members.end(MAC, Outcome.STOPPED, "told to")
    assert members.end(MAC, Outcome.FAILED, "killed") == []
    assert members.detach("s1", "connection closed") == []
    assert members.by_mac[MAC].outcome is Outcome.STOPPED


def test_a_phase_is_reported_once_and_keeps_the_round(members: Members) -> None:
    assert kinds(members.progress(MAC, Phase.TRAINING, 3)) == ["progress"]
    assert members.progress(MAC, Phase.TRAINING, None) == []
    (change,) = members.progress(MAC, Phase.UPLOADING, None)
    assert (change.member.phase, change.member.round) == (Phase.UPLOADING, 3)


def test_the_outcome_of_an_unknown_client_changes_nothing() -> None:
    assert Members().end(MAC, Outcome.FAILED, "?") == []


def test_the_bytes_of_a_client_never_fall_whichever_attempt_it_is(members: Members) -> None:
    members.count(MAC, bytes_in=100, bytes_out=1000)
    members.join(MAC, "i2", 2, "s2")
    members.count(MAC, bytes_in=5)
    assert (members.by_mac[MAC].bytes_in, members.by_mac[MAC].bytes_out) == (105, 1000)


def test_the_code_of_an_end_stays_with_its_reason_and_a_new_attempt_has_none(members: Members) -> None:
    (change,) = members.end(MAC, Outcome.STOPPED, "interrupted: the daemon was ended", ReasonCode.INTERRUPTED)
    assert change.member.reason_code is ReasonCode.INTERRUPTED
    members.join(MAC, "i2", 2, "s2")
    assert members.by_mac[MAC].reason_code is None
