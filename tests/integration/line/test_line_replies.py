"""Replies that are not the model: their client is out as failed, and the round goes on with the others."""

from typing import Any

import numpy as np
import orjson
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from line_parts import Lines, ask, ask_in_thread, echo_app, mac_of
from test_line_wire import HandClient, replies_of, reply_to

from fedops_mqtt.line.codec import HEAD
from fedops_mqtt.line.reply_check import ReplyCheck
from fedops_mqtt.protocol import Outcome

MODEL = RecordDict({"arrays": ArrayRecord([np.zeros(2, "f4")])})


@pytest.mark.parametrize("values", [np.zeros((2, 1), "f4"), np.array([1, np.nan], "f4")], ids=["shape", "nan"])
def test_a_reply_that_is_not_the_model_is_its_clients_failure(lines: Lines, values: Any) -> None:
    def spoil(message: Message, context: Context) -> None:
        message.content["arrays"] = ArrayRecord([values])

    server = lines.serve(min_clients=2)
    server.grid.reply_check = ReplyCheck()
    bad = lines.join(server, echo_app(spoil))
    lines.join(server, echo_app(), mac=mac_of(2))
    replies = ask(server, RecordDict(dict(MODEL)))
    assert sorted(reply.has_content() for reply in replies) == [False, True]
    (failure,) = [reply.error.reason or "" for reply in replies if reply.has_error()]
    assert mac_of(1) in failure
    assert "array '0'" in failure
    end = bad.end()
    assert (end.outcome, "array '0'" in end.reason) == (Outcome.FAILED, True)
    assert "array '0'" in (lines.changes.wait("failed").member.reason or "")


def announcing(frame: bytes, num_bytes: int) -> bytes:
    """Return a frame whose one array says that it is a compressed one of another size."""
    magic, metadata_bytes, content_bytes = HEAD.unpack(frame[: HEAD.size])
    split = HEAD.size + metadata_bytes
    content = orjson.loads(frame[split : split + content_bytes])
    item = content["records"][0]["items"][0]
    item[1:5] = ["float32", [num_bytes // 4], item[3], num_bytes + 128]
    head = orjson.dumps(content)
    return (
        HEAD.pack(magic, metadata_bytes, len(head)) + frame[HEAD.size : split] + head + frame[split + content_bytes :]
    )


def test_a_reply_that_would_unpack_to_far_more_than_its_model_is_refused_by_its_header(lines: Lines) -> None:
    """1.5 GB of zeros are 50 KB on the wire."""
    hand = HandClient(lines.serve(limits={"ping_s": 30.0}))
    hand.server.grid.reply_check = ReplyCheck()
    results = ask_in_thread(hand.server, RecordDict(dict(MODEL)))
    asked = hand.next()
    content = RecordDict({**MODEL, "metrics": MetricRecord({"num-examples": 1})})
    status, refusal = hand.post(asked.metadata.message_id, announcing(reply_to(asked, content), 1_500_000_000))
    hand.control.close()
    assert (status, refusal["code"]) == (413, "too_large")
    (reply,) = replies_of(results)
    assert mac_of(1) in reply.error.reason
    assert "accept_any_shape" in reply.error.reason
    assert lines.changes.wait("failed").member.outcome is Outcome.FAILED


def test_without_a_check_whatever_the_line_carries_is_taken(lines: Lines) -> None:
    def spoil(message: Message, context: Context) -> None:
        message.content["arrays"] = ArrayRecord([np.array([np.nan, 1, 2])])

    server = lines.serve()
    lines.join(server, echo_app(spoil))
    (reply,) = ask(server, RecordDict(dict(MODEL)))
    assert reply.has_content()


def test_an_evaluation_reply_that_cannot_be_averaged_fails_as_a_message_only(lines: Lines) -> None:
    app = ClientApp()

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": -1})}), reply_to=message)

    server = lines.serve()
    server.grid.reply_check = ReplyCheck(weight_key="num-examples")
    lines.join(server, app)
    (node,) = server.grid.get_node_ids()
    (reply,) = server.grid.send_and_receive([Message(RecordDict(dict(MODEL)), node, "evaluate")])
    assert mac_of(1) in reply.error.reason
    assert "num-examples" in reply.error.reason
    assert server.grid.get_node_ids() == [node]
