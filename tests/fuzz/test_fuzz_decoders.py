"""Everything that turns foreign bytes into values: any bytes give a value or the error that its callers know."""

import contextlib
import io
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedops_mqtt.bus import EpochFile
from fedops_mqtt.core.client_state import ClientState
from fedops_mqtt.core.ownership import latest_epoch
from fedops_mqtt.device.journal import ClientJournal
from fedops_mqtt.line import codec, flwr_private, wire
from fedops_mqtt.line.errors import FrameError, MessageTooLargeError
from fedops_mqtt.protocol import ProtocolError, parse_topic
from fedops_mqtt.runtime.processes import LineSplitter, Tail
from fedops_mqtt.store.errors import CorruptFileError
from fedops_mqtt.store.tensor_file import read_tensors, write_tensors
from fedops_mqtt.training.pipe import parse_command, parse_report

MAX_FRAME_BYTES = 1 << 20
ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def spoiled(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes that were right once: some replaced, taken away or put in, the end cut off, or something after it."""
    if draw(st.booleans()):
        return whole + draw(st.binary(min_size=1, max_size=40))
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.integers(0, 4))
        data[at : at + gone] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


# Frames of the line


def frames() -> list[bytes]:
    """One of each kind: all that a record may hold, no record, and an error."""
    flwr_private.set_identity(run_id=5, node_id=1)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.arange(6, dtype=np.float32).reshape(2, 3)), "b": Array(np.ones(2))}),
            "metrics": MetricRecord({"loss": 0.5, "many": [1, 2]}),
            "config": ConfigRecord({"rate": 0.1, "key": b"bytes", "name": "x"}),
        }
    )
    message = Message(content, dst_node_id=7, message_type="train", group_id="3")
    message.metadata.__dict__["_message_id"] = "m"
    empty, failed = Message(RecordDict(), reply_to=message), Message(Error(1, "x"), reply_to=message)
    return [b"".join(codec.encode_message(each).chunks(max_bytes=1 << 16)) for each in (message, empty, failed)]


FRAMES = frames()
FRAME = FRAMES[0]
any_frame = st.sampled_from(FRAMES)


def read_frame(blob: bytes, announced_bytes: int) -> None:
    reader = codec.FrameReader(num_bytes=announced_bytes, max_bytes=MAX_FRAME_BYTES)
    reader.feed(blob)
    if reader.is_complete:
        message = reader.take()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy, of a dtype that it will not have for ever
            list(message.content.values()) if message.has_content() else message.error.reason


@given(st.binary(max_size=300), st.integers(0, 2 * MAX_FRAME_BYTES))
def test_any_bytes_are_a_frame_or_our_error(blob: bytes, announced_bytes: int) -> None:
    with contextlib.suppress(FrameError, MessageTooLargeError):
        read_frame(blob, announced_bytes)


@given(any_frame.flatmap(spoiled))
def test_a_spoiled_frame_is_a_frame_or_our_error(blob: bytes) -> None:
    with contextlib.suppress(FrameError, MessageTooLargeError):
        read_frame(blob, len(blob))


def with_headers(metadata: Any, content: Any, buffers: bytes) -> bytes:
    first, second = (json.dumps(each).encode() for each in (metadata, content))
    return codec.HEAD.pack(codec.MAGIC, len(first), len(second)) + first + second + buffers


def headers_of(blob: bytes) -> tuple[Any, Any, bytes]:
    _, first, second = codec.HEAD.unpack_from(blob)
    start, middle = codec.HEAD.size, codec.HEAD.size + first
    return orjson.loads(blob[start:middle]), orjson.loads(blob[middle : middle + second]), blob[middle + second :]


@st.composite
def respelled(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one part of it replaced by any other."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: draw(respelled(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(respelled(value[at])), *value[at + 1 :]]
    return draw(json_values)


@given(st.data())
def test_a_frame_with_other_headers_is_a_frame_or_our_error(data: st.DataObject) -> None:
    metadata, content, buffers = headers_of(data.draw(any_frame))
    if data.draw(st.booleans()):
        metadata = data.draw(respelled(metadata))
    else:
        content = data.draw(respelled(content))
    blob = with_headers(metadata, content, buffers)
    with contextlib.suppress(FrameError, MessageTooLargeError):
        read_frame(blob, len(blob))


@given(st.data())
def test_a_reader_from_a_stream_takes_no_more_than_was_announced(data: st.DataObject) -> None:
    blob = data.draw(any_frame.flatmap(spoiled))
    stream = io.BytesIO(blob + b"next")
    with contextlib.suppress(FrameError, MessageTooLargeError):
        codec.read_message(stream.read, num_bytes=len(blob), max_bytes=MAX_FRAME_BYTES)
        assert stream.tell() <= len(blob)


BODIES = [wire.JoinRequest, wire.JoinAnswer, wire.LeaveRequest, wire.PongRequest, wire.ControlLine, wire.ReplyState]


@given(st.sampled_from(BODIES), st.binary(max_size=100) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_body_of_the_line_is_one_or_our_error(kind: type[Any], body: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert isinstance(wire.decode_body(kind, body), kind)


# Between a daemon and its training process


REPORTS = [
    b'{"report": "phase", "phase": "training", "round": 1, "gl_model": 2, "run_id": "r"}',
    b'{"report": "metrics", "kind": "train", "round": 1, "values": {"loss": 0.1}}',
    b'{"report": "ended", "outcome": "finished", "reason": null}',
    b'{"command": "redirect", "server_ip": "h:1", "launch": 2}',
]


@given(st.binary(max_size=100) | st.sampled_from(REPORTS).flatmap(spoiled))
def test_any_line_of_a_training_process_is_a_report_or_a_value_error(line: bytes) -> None:
    for parse in (parse_report, parse_command):
        with contextlib.suppress(ValueError):
            assert parse(line) is not None


@given(st.lists(st.binary(max_size=200), max_size=30))
def test_a_training_process_that_writes_anything_costs_no_memory(chunks: list[bytes]) -> None:
    splitter, tail = LineSplitter(max_bytes=64), Tail(max_lines=5, max_bytes=256)
    for chunk in chunks:
        assert all(len(line) <= 64 for line in splitter.feed(chunk))
        tail.feed(chunk)
    assert tail.text.isprintable() or "\n" in tail.text or "\t" in tail.text
    assert len(splitter._rest) <= 64
    assert len(tail.text.encode(errors="replace")) <= 3 * 256


@given(st.text(max_size=80) | st.lists(st.text(max_size=10), max_size=8).map("/".join).map("fedops/v1/".__add__))
def test_any_topic_is_parsed_or_a_topic_error(text: str) -> None:
    with contextlib.suppress(ProtocolError):
        assert str(parse_topic(text)) == text


# Files


@ONE_FOLDER
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_journal_is_facts_or_set_aside(tmp_path: Path, content: bytes) -> None:
    journal = ClientJournal(tmp_path)
    (tmp_path / "journal.json").write_bytes(content)
    facts = journal.load()
    assert isinstance(facts, ClientState)
    journal.save(facts)
    assert ClientJournal(tmp_path).load() == facts


@ONE_FOLDER
@given(st.binary(max_size=40) | st.integers(-(10**400), 10**400).map(lambda number: str(number).encode()))
def test_any_epoch_file_is_a_number_or_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "epoch").write_bytes(content)
    assert 0 <= EpochFile(tmp_path / "epoch").load() <= latest_epoch(time.time_ns() // 1_000_000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_tensors(path, {"w": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), dtype=np.int8)}, {"round": 3})
    return path.read_bytes()


@ONE_FOLDER
@given(st.data())
def test_a_spoiled_model_is_never_taken_for_another(tmp_path: Path, model: bytes, data: st.DataObject) -> None:
    blob = data.draw(spoiled(model) | st.binary(max_size=200))
    path = tmp_path / "model.safetensors"
    path.write_bytes(blob)
    with contextlib.suppress(CorruptFileError):
        arrays, facts = read_tensors(path)
        assert (arrays["w"].tolist(), facts) == (list(range(6)), {"round": 3})
