"""Flower messages to frames and back: a head, two JSON headers, then raw buffers in order.

The format is told in docs/flower-over-the-line.md. To encode, nothing is copied (buffers are what flwr holds); to
decode, nothing is unpickled, ever.
"""

import math
import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import orjson
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedops_mqtt.line import arrays, flwr_private
from fedops_mqtt.line.errors import FrameError, MessageTooLargeError
from fedops_mqtt.line.limits import LineCompression

MAGIC = b"FLM1"
HEAD = struct.Struct(">4sII")
"""Magic, bytes of the metadata header, bytes of the content header (both JSON)."""
MAX_HEADER_BYTES = 64 * 1024 * 1024
"""Long metric lists travel in the header; arrays do not."""
_METADATA_FIELDS = {
    "run_id": int,
    "message_id": str,
    "src_node_id": int,
    "dst_node_id": int,
    "reply_to_message_id": str,
    "group_id": str,
    "created_at": float,
    "ttl": float,
    "message_type": str,
}
_OPTIONAL_FIELDS = ("src_task_id", "dst_task_id")
_SMALL_BYTES = 64 * 1024
"""Buffers are gathered up to this size: one write for a small model, and not one for each of a network's biases."""
Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedContent:
    """The part of a frame that is the same for every client: made once a round, shared by all of them."""

    header: bytes
    buffers: tuple[Buffer, ...]
    saved_bytes: int = 0
    """What compression has taken off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message as it is sent: `head` (with both headers), then the buffers, which belong to somebody else."""

    head: bytes
    buffers: tuple[Buffer, ...]
    num_bytes: int
    message_bytes: int
    """With every array unpacked: the size limit counts these."""

    def chunks(self, *, offset: int = 0, max_bytes: int) -> Iterator[Buffer]:
        """Yield the frame from `offset` on in pieces of at most `max_bytes`; small buffers are copied together."""
        small = bytearray()
        for view in self._views(offset):
            if len(view) + len(small) <= _SMALL_BYTES:
                small += view
                continue
            if small:
                yield bytes(small)
                small.clear()
            for start in range(0, len(view), max_bytes):
                yield view[start : start + max_bytes]
        if small:
            yield bytes(small)

    def _views(self, offset: int) -> Iterator[memoryview]:
        for buffer in (self.head, *self.buffers):
            yield memoryview(buffer)[offset:]
            offset = max(0, offset - len(buffer))


def encode_content(content: RecordDict, compress: Callable[[bytes], bytes | None] | None = None) -> EncodedContent:
    """Encode what a message carries; `compress` returns None for what it leaves as it is.

    Raises:
        FrameError: a value that Flower's own wire could not carry either (an integer over 64 bits).
    """
    buffers: list[Buffer] = []
    records = [_encode_record(name, record, buffers, compress) for name, record in content.items()]
    plain_bytes = sum(item[4] for record in records if record["kind"] == "arrays" for item in record["items"])
    wire_bytes = sum(item[5] for record in records if record["kind"] == "arrays" for item in record["items"])
    return EncodedContent(
        header=_dump({"records": records}), buffers=tuple(buffers), saved_bytes=plain_bytes - wire_bytes
    )


def encode_error(error: Error) -> EncodedContent:
    """Encode an error in the place of content."""
    return EncodedContent(header=_dump({"error": {"code": error.code, "reason": error.reason}}), buffers=())


def encode_message(message: Message, content: EncodedContent | None = None) -> Frame:
    """Frame a message; `content` is its content encoded before, for messages that share it."""
    if content is None:
        content = encode_error(message.error) if message.has_error() else encode_content(message.content)
    metadata = _dump({name: getattr(message.metadata, name) for name in (*_METADATA_FIELDS, *_OPTIONAL_FIELDS)})
    head = HEAD.pack(MAGIC, len(metadata), len(content.header)) + metadata + content.header
    num_bytes = len(head) + sum(len(buffer) for buffer in content.buffers)
    return Frame(head=head, buffers=content.buffers, num_bytes=num_bytes, message_bytes=num_bytes + content.saved_bytes)


def compress_with(compression: LineCompression | None) -> Callable[[bytes], bytes | None] | None:
    """Return the `compress` for `encode_content`."""
    return None if compression is None else lambda data: arrays.compress(data, compression)


class FrameReader:
    """A frame that arrives in pieces: feed it until it `is_complete`; it takes memory for what arrived only.

    `num_bytes` is the Content-Length. Raises FrameError or MessageTooLargeError as soon as the frame shows its fault.
    """

    def __init__(self, *, num_bytes: int, max_bytes: int) -> None:
        _check_size(num_bytes, max_bytes)
        self.num_bytes = num_bytes
        self.received_bytes = 0
        self._parser = _parse(num_bytes, max_bytes)
        self._wanted_bytes = next(self._parser)
        self._part = BytesIO()
        self._message: Message | None = None

    @property
    def is_complete(self) -> bool:
        """True when every byte of the frame is there and was found right."""
        return self._message is not None

    def feed(self, chunk: Buffer) -> None:
        """Take the next bytes of the frame."""
        if self.received_bytes + len(chunk) > self.num_bytes:
            raise FrameError(f"more than the {self.num_bytes} bytes that were announced")
        self.received_bytes += len(chunk)
        view = memoryview(chunk)
        while len(view):
            missing = self._wanted_bytes - self._part.tell()
            self._part.write(view[:missing])
            view = view[missing:]
            while self._message is None and self._part.tell() == self._wanted_bytes:
                self._hand_over()

    def take(self) -> Message:
        """Hand over the message; the reader keeps nothing of it.

        Raises:
            FrameError: bytes are missing.
        """
        message, self._message = self._message, None
        if message is None:
            raise FrameError(f"frame ends after {self.received_bytes} of {self.num_bytes} bytes")
        return message

    def _hand_over(self) -> None:
        part, self._part = self._part.getvalue(), BytesIO()  # getvalue hands over BytesIO's own buffer: no second copy
        try:
            self._wanted_bytes = self._parser.send(part)
        except StopIteration as end:
            self._message = end.value


def read_message(read: Callable[[int], bytes], *, num_bytes: int, max_bytes: int) -> Message:
    """Read one frame of `num_bytes` from a blocking `read(n)`, which returns fewer only at the end of the stream.

    Raises:
        FrameError, MessageTooLargeError: as for `FrameReader`.
        EOFError: the stream ended early (a broken connection, not a fault of the frame).
    """
    _check_size(num_bytes, max_bytes)
    parser = _parse(num_bytes, max_bytes)
    wanted_bytes = next(parser)
    try:
        while True:
            part = read(wanted_bytes) if wanted_bytes else b""
            if len(part) < wanted_bytes:
                raise EOFError(f"frame cut off: {len(part)} of {wanted_bytes} bytes")
            wanted_bytes = parser.send(part)
            del part  # the array belongs to the message now; do not keep it while the next one is read
    except StopIteration as end:
        return cast(Message, end.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One buffer that is still to come: an array, or the bytes of a config value (no stype)."""

    wire_bytes: int
    num_bytes: int
    stype: str | None = None
    dtype: str = ""
    shape: tuple[int, ...] = ()

    def open(self, data: bytes) -> bytes:
        """Return what the buffer holds, checked."""
        if self.wire_bytes != self.num_bytes:
            data = arrays.decompress(data, self.num_bytes)
        if self.stype == flwr_private.NUMPY_STYPE and data:
            arrays.check_npy(data, dtype=self.dtype, shape=self.shape)
        return data


def _parse(num_bytes: int, max_bytes: int) -> Generator[int, bytes, Message]:
    """Parse a frame: yields how many bytes it wants next, is sent just those, returns the message."""
    magic, metadata_bytes, content_bytes = HEAD.unpack((yield HEAD.size))
    if magic != MAGIC:
        raise FrameError(f"starts with {magic!r}, not {MAGIC!r}")
    if max(metadata_bytes, content_bytes) > MAX_HEADER_BYTES or HEAD.size + metadata_bytes + content_bytes > num_bytes:
        raise FrameError("headers are longer than the frame or the format allows")
    metadata = _decode_metadata(_load((yield metadata_bytes)))
    content = _load((yield content_bytes))
    if "error" in content:
        return flwr_private.make_message(metadata, error=_decode_error(content["error"]))
    records = _checked(content.get("records"), list)
    parts = [part for record in records for part in _parts_of(record)]
    expected_bytes = HEAD.size + metadata_bytes + content_bytes + sum(part.wire_bytes for part in parts)
    if expected_bytes != num_bytes:
        raise FrameError(f"headers describe {expected_bytes} bytes, the frame has {num_bytes}")
    unpacked_bytes = expected_bytes + sum(max(0, part.num_bytes - part.wire_bytes) for part in parts)
    if unpacked_bytes > max_bytes:
        raise MessageTooLargeError(unpacked_bytes, max_bytes)
    buffers = []
    for part in parts:
        buffers.append(part.open((yield part.wire_bytes)))
    return flwr_private.make_message(metadata, content=_decode_records(records, iter(zip(parts, buffers, strict=True))))


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise MessageTooLargeError(num_bytes, max_bytes)
    if num_bytes <= HEAD.size:
        raise FrameError(f"{num_bytes} bytes are too few for a frame")


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise FrameError(f"cannot be written: {error}") from error


def _load(data: bytes) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", _checked(orjson.loads(data), dict))
    except orjson.JSONDecodeError as error:
        raise FrameError(f"header is not JSON: {error}") from error


def _checked(value: Any, *types: type) -> Any:
    if type(value) not in types:
        raise FrameError(f"header has {type(value).__name__} where {types[0].__name__} belongs")
    return value


def _decode_metadata(fields: dict[str, Any]) -> flwr_private.Metadata:
    values: dict[str, Any] = {}
    for name, kind in _METADATA_FIELDS.items():
        value = fields.get(name)
        values[name] = float(_checked(value, float, int)) if kind is float else _checked(value, kind)
    for name in _OPTIONAL_FIELDS:
        value = fields.get(name)
        values[name] = None if value is None else _checked(value, int)
    try:
        return flwr_private.Metadata(**values)
    except (TypeError, ValueError) as error:  # flwr knows which message types there are
        raise FrameError(f"metadata: {error}") from error


def _decode_error(fields: Any) -> Error:
    reason = _checked(fields, dict).get("reason")
    return Error(code=_checked(fields.get("code"), int), reason=None if reason is None else _checked(reason, str))


def _encode_record(
    name: str, record: Any, buffers: list[Buffer], compress: Callable[[bytes], bytes | None] | None
) -> dict[str, Any]:
    if isinstance(record, ArrayRecord):
        return {
            "name": name,
            "kind": "arrays",
            "items": [_encode_array(k, a, buffers, compress) for k, a in record.items()],
        }
    kind = "metrics" if isinstance(record, MetricRecord) else "configs"
    return {"name": name, "kind": kind, "items": [[key, _pack(value, buffers)] for key, value in record.items()]}


def _encode_array(
    key: str, array: Array, buffers: list[Buffer], compress: Callable[[bytes], bytes | None] | None
) -> list[Any]:
    packed = compress(array.data) if compress is not None else None
    wire = array.data if packed is None else packed
    buffers.append(wire)
    return [key, array.dtype, list(array.shape), array.stype, len(array.data), len(wire)]


def _pack(value: Any, buffers: list[Buffer]) -> Any:
    """Return a config or metric value as JSON keeps it: bytes become buffers, NaN and infinities their names."""
    match value:
        case list():
            return [_pack(item, buffers) for item in value]
        case bytes():
            buffers.append(value)
            return {"bytes": len(value)}
        case bool() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else {"float": str(float(value))}
        case int():
            return int(value)
    raise FrameError(f"a record cannot hold a {type(value).__name__}")


def _parts_of(record: Any) -> Iterator[_Part]:
    """Yield the buffers that a record of the header announces, each checked before memory is taken for it."""
    items = _checked(_checked(record, dict).get("items"), list)
    if record.get("kind") == "arrays":
        yield from (_array_part(_checked(item, list)) for item in items)
        return
    for item in items:
        value = item[1] if type(item) is list and len(item) == 2 else None
        for one in value if type(value) is list else [value]:
            if type(one) is dict and "bytes" in one:
                length = _length(one["bytes"])
                yield _Part(wire_bytes=length, num_bytes=length)


def _array_part(item: list[Any]) -> _Part:
    if len(item) != 6:
        raise FrameError(f"array header has {len(item)} fields, not 6")
    _, dtype, shape, stype, num_bytes, wire_bytes = item
    part = _Part(
        wire_bytes=_length(wire_bytes),
        num_bytes=_length(num_bytes),
        stype=_checked(stype, str),
        dtype=_checked(dtype, str),
        shape=tuple(_length(axis) for axis in _checked(shape, list)),
    )
    if part.stype == flwr_private.NUMPY_STYPE:
        arrays.check_declared(dtype=part.dtype, shape=part.shape, num_bytes=part.num_bytes)
    return part


def _length(value: Any) -> int:
    if _checked(value, int) < 0:
        raise FrameError(f"a length of {value}")
    return cast(int, value)


def _decode_records(records: list[Any], buffers: Iterator[tuple[_Part, bytes]]) -> RecordDict:
    content = RecordDict()
    try:
        for record in records:
            content[_checked(record.get("name"), str)] = _decode_record(record, buffers)
    except (TypeError, ValueError, StopIteration) as error:  # flwr's records check their keys and values by themselves
        raise FrameError(f"record: {error!r}") from error
    return content


def _decode_record(record: dict[str, Any], buffers: Iterator[tuple[_Part, bytes]]) -> Any:
    items = record["items"]
    match record.get("kind"):
        case "arrays":
            return ArrayRecord({_checked(item[0], str): _make_array(*next(buffers)) for item in items})
        case "metrics":
            return MetricRecord({key: _unpack(value, buffers) for key, value in items})
        case "configs":
            return ConfigRecord({key: _unpack(value, buffers) for key, value in items})
    raise FrameError(f"unknown kind of record {record.get('kind')!r}")


def _make_array(part: _Part, data: bytes) -> Array:
    return Array(dtype=part.dtype, shape=part.shape, stype=part.stype or "", data=data)


def _unpack(value: Any, buffers: Iterator[tuple[_Part, bytes]]) -> Any:
    if type(value) is list:
        return [_unpack(item, buffers) for item in value]
    if type(value) is not dict:
        return value
    if "bytes" in value:
        return next(buffers)[1]
    if value.get("float") not in ("nan", "inf", "-inf"):
        raise FrameError("a value is an object that means nothing here")
    return float(value["float"])
