import pytest
from flwr.app import Message, MetricRecord, RecordDict

from fedops_mqtt.line import flwr_private
from fedops_mqtt.line.codec import encode_message
from fedops_mqtt.line.message_queue import MessageQueue, OutboundMessage


def outbound_message(message_id: str, node_id: int = 7) -> OutboundMessage:
    flwr_private.set_identity(run_id=5, node_id=1)
    message = Message(RecordDict({"m": MetricRecord({"x": 1})}), node_id, "train")
    flwr_private.stamp(message, message_id=message_id, run_id=5, src_node_id=1)
    return OutboundMessage(message_id=message_id, node_id=node_id, message=message, frame=encode_message(message))


def reply_to(asked: OutboundMessage) -> Message:
    return Message(RecordDict({"m": MetricRecord({"x": 2})}), reply_to=asked.message)


@pytest.fixture
def message_queue() -> MessageQueue:
    message_queue = MessageQueue()
    message_queue.post(outbound_message("a"))
    message_queue.post(outbound_message("b"))
    return message_queue


def test_a_node_gets_its_messages_in_order_and_again_until_it_answers(message_queue: MessageQueue) -> None:
    first = message_queue.head(7)
    assert first is not None
    assert (first.message_id, message_queue.head(7)) == ("a", first)
    assert message_queue.answer(7, "a", reply_to(first))
    second = message_queue.head(7)
    assert second is not None
    assert second.message_id == "b"
    assert message_queue.head(8) is None


def test_a_reply_is_taken_once(message_queue: MessageQueue) -> None:
    first = message_queue.head(7)
    assert first is not None
    assert message_queue.answer(7, "a", reply_to(first))
    assert not message_queue.answer(7, "a", reply_to(first))
    assert message_queue.was_answered(7, "a")
    assert len(message_queue.collect(["a", "b"])) == 1
    assert message_queue.was_answered(7, "a")


def test_no_node_answers_for_another(message_queue: MessageQueue) -> None:
    assert not message_queue.answer(8, "a", reply_to(outbound_message("a")))
    assert not message_queue.answer(7, "zzz", reply_to(outbound_message("zzz")))


def test_what_a_lost_node_owes_is_answered_with_errors_at_once(message_queue: MessageQueue) -> None:
    assert message_queue.fail(7, "lost") == 2
    assert message_queue.owing(["a", "b"]) == []
    errors = message_queue.collect(["a", "b"])
    assert [(m.error.reason, m.metadata.reply_to_message_id, m.metadata.src_node_id) for m in errors] == [
        ("lost", "a", 7),
        ("lost", "b", 7),
    ]
    assert message_queue.is_empty


def test_a_late_reply_replaces_the_error_until_it_is_collected(message_queue: MessageQueue) -> None:
    first = message_queue.head(7)
    assert first is not None
    message_queue.fail(7, "lost")
    assert message_queue.answer(7, "a", reply_to(first))
    assert not message_queue.answer(7, "a", reply_to(first))
    collected = message_queue.collect(["a", "b"])
    assert [message.has_error() for message in collected] == [False, True]
    assert not message_queue.answer(7, "b", reply_to(first))


def test_a_message_to_a_node_that_is_not_connected_is_an_error(message_queue: MessageQueue) -> None:
    message_queue.refuse(outbound_message("c", 9), "not in the run")
    assert message_queue.head(9) is None
    assert message_queue.collect(["c"])[0].error.reason == "not in the run"


def test_a_withdrawn_message_is_not_handed_out_and_its_reply_not_taken(message_queue: MessageQueue) -> None:
    message_queue.withdraw(["a"])
    head = message_queue.head(7)
    assert head is not None
    assert head.message_id == "b"
    assert not message_queue.answer(7, "a", reply_to(outbound_message("a")))
