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
def mailbox() -> MessageQueue:
    mailbox = MessageQueue()
    mailbox.post(outbound_message("a"))
    mailbox.post(outbound_message("b"))
    return mailbox


def test_a_node_gets_its_messages_in_order_and_again_until_it_answers(mailbox: MessageQueue) -> None:
    first = mailbox.head(7)
    assert first is not None
    assert (first.message_id, mailbox.head(7)) == ("a", first)
    assert mailbox.answer(7, "a", reply_to(first))
    second = mailbox.head(7)
    assert second is not None
    assert second.message_id == "b"
    assert mailbox.head(8) is None


def test_a_reply_is_taken_once(mailbox: MessageQueue) -> None:
    first = mailbox.head(7)
    assert first is not None
    assert mailbox.answer(7, "a", reply_to(first))
    assert not mailbox.answer(7, "a", reply_to(first))
    assert mailbox.was_answered(7, "a")
    assert len(mailbox.collect(["a", "b"])) == 1
    assert mailbox.was_answered(7, "a")


def test_nobody_answers_for_another_node(mailbox: MessageQueue) -> None:
    assert not mailbox.answer(8, "a", reply_to(outbound_message("a")))
    assert not mailbox.answer(7, "zzz", reply_to(outbound_message("zzz")))


def test_what_a_lost_node_owes_is_answered_with_errors_at_once(mailbox: MessageQueue) -> None:
    assert mailbox.fail(7, "lost") == 2
    assert mailbox.owing(["a", "b"]) == []
    errors = mailbox.collect(["a", "b"])
    assert [(m.error.reason, m.metadata.reply_to_message_id, m.metadata.src_node_id) for m in errors] == [
        ("lost", "a", 7),
        ("lost", "b", 7),
    ]
    assert mailbox.is_empty


def test_a_late_reply_replaces_the_error_until_it_is_collected(mailbox: MessageQueue) -> None:
    first = mailbox.head(7)
    assert first is not None
    mailbox.fail(7, "lost")
    assert mailbox.answer(7, "a", reply_to(first))
    assert not mailbox.answer(7, "a", reply_to(first))
    collected = mailbox.collect(["a", "b"])
    assert [message.has_error() for message in collected] == [False, True]
    assert not mailbox.answer(7, "b", reply_to(first))


def test_a_message_to_a_node_that_is_not_connected_is_an_error(mailbox: MessageQueue) -> None:
    mailbox.refuse(outbound_message("c", 9), "not in the run")
    assert mailbox.head(9) is None
    assert mailbox.collect(["c"])[0].error.reason == "not in the run"


def test_a_withdrawn_message_is_not_handed_out_and_its_reply_not_taken(mailbox: MessageQueue) -> None:
    mailbox.withdraw(["a"])
    head = mailbox.head(7)
    assert head is not None
    assert head.message_id == "b"
    assert not mailbox.answer(7, "a", reply_to(outbound_message("a")))
