"""Flower messages to frames and back: a head, two JSON headers, then raw buffers in order.

The format is described in docs/flower-over-the-line.md. To encode, nothing is copied (buffers are what flwr holds); to
decode, nothing is unpickled, ever.
"""

import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import orjson
from flwr.app import Error, Message, RecordDict

from fedops_mqtt.line import flwr_private
from fedops_mqtt.line.errors import FrameError, MessageTooLargeError
from fedops_mqtt.line.records import Compress, checked, compress, decode_records, encode_record, parts_of
from fedops_mqtt.line.wire import Buffer, LineCompression
from fedops_mqtt.protocol import clip

MAGIC = b"FLM1"
HEAD = struct.Struct(">4sII")
"""Magic, bytes of the metadata header, bytes of the content header (both JSON)."""
MAX_HEADER_BYTES = 64 * 1024 * 1024
"""Long metric lists travel in the header; arrays do not."""
MAX_METADATA_BYTES = 64 * 1024
"""Nine short fields."""
MAX_HEADER_VALUES = 2_000_000
"""Above what 100,000 arrays need (12 each). Three bytes may be an object of a hundred: 64 MiB of them were 1.8 GB."""
_SEPARATORS = b",:[{"
"""A value stands behind each, but for the first; those within strings are counted too."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedContent:
    """The part of a frame that is the same for every client: made once a round, shared by all of them."""

    header: bytes
    buffers: tuple[Buffer, ...]
    saved_bytes: int = 0
    """What compression has taken off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message as it is sent: `head` (with both headers), then the buffers, which flwr owns."""

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


def encode_content(content: RecordDict, compress: Compress | None = None) -> EncodedContent:
    """Encode what a message carries; `compress` returns None for what it leaves as it is.

    Raises:
        FrameError: a value that Flower's own wire could not carry either (an integer over 64 bits).
    """
    buffers: list[Buffer] = []
    records = [encode_record(name, record, buffers, compress) for name, record in content.items()]
    arrays_sent = (item for record in records if record["kind"] == "arrays" for item in record["items"])
    saved_bytes = sum(num_bytes - wire_bytes for *_, num_bytes, wire_bytes in arrays_sent)
    return EncodedContent(header=_dump({"records": records}), buffers=tuple(buffers), saved_bytes=saved_bytes)


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


def compress_with(compression: LineCompression | None) -> Compress | None:
    """Return the `compress` for `encode_content`."""
    return None if compression is None else lambda data: compress(data, compression)


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
            if self._message is not None:
                raise FrameError(f"{len(view)} bytes stand after the end of the message")
            missing = self._wanted_bytes - self._part.tell()
            self._part.write(view[:missing])
            view = view[missing:]
            while self._message is None and self._part.tell() == self._wanted_bytes:
                self._finish_part()

    def take(self) -> Message:
        """Return the message; the reader keeps nothing of it.

        Raises:
            FrameError: bytes are missing.
        """
        message, self._message = self._message, None
        if message is None:
            raise FrameError(f"frame ends after {self.received_bytes} of {self.num_bytes} bytes")
        return message

    def _finish_part(self) -> None:
        part, self._part = self._part.getvalue(), BytesIO()  # getvalue returns BytesIO's own buffer: no second copy
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


def _parse(num_bytes: int, max_bytes: int) -> Generator[int, bytes, Message]:
    """Parse a frame: yields how many bytes it wants next, is sent just those, returns the message."""
    magic, metadata_bytes, content_bytes = HEAD.unpack((yield HEAD.size))
    if magic != MAGIC:
        raise FrameError(f"starts with {magic!r}, not {MAGIC!r}")
    is_too_long = metadata_bytes > MAX_METADATA_BYTES or content_bytes > MAX_HEADER_BYTES
    if is_too_long or HEAD.size + metadata_bytes + content_bytes > num_bytes:
        raise FrameError("headers are longer than the frame or the format allows")
    metadata = _decode_metadata(_load((yield metadata_bytes)))
    content = _load((yield content_bytes))
    error = _decode_error(content["error"]) if "error" in content else None
    records = checked(content.get("records"), list) if error is None else []
    parts = [part for record in records for part in parts_of(record)]
    expected_bytes = HEAD.size + metadata_bytes + content_bytes + sum(part.wire_bytes for part in parts)
    if expected_bytes != num_bytes:
        raise FrameError(f"headers describe {expected_bytes} bytes, the frame has {num_bytes}")
    if error is not None:
        return flwr_private.make_message(metadata, error=error)
    unpacked_bytes = expected_bytes + sum(max(0, part.num_bytes - part.wire_bytes) for part in parts)
    if unpacked_bytes > max_bytes:
        raise MessageTooLargeError(unpacked_bytes, max_bytes)
    buffers = []
    for part in parts:
        buffers.append(part.open((yield part.wire_bytes)))
    return flwr_private.make_message(metadata, content=decode_records(records, iter(zip(parts, buffers, strict=True))))


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
    """Read a header, which takes memory by how many values it has, more than by how long it is."""
    num_values = sum(data.count(mark) for mark in _SEPARATORS)
    if num_values > MAX_HEADER_VALUES:
        raise FrameError(f"header of {num_values} values, {MAX_HEADER_VALUES} are allowed; send numbers as arrays")
    try:
        return cast("dict[str, Any]", checked(orjson.loads(data), dict))
    except orjson.JSONDecodeError as error:
        raise FrameError(f"header is not JSON: {error}") from error


def _decode_metadata(fields: dict[str, Any]) -> flwr_private.Metadata:
    values: dict[str, Any] = {}
    for name, kind in _METADATA_FIELDS.items():
        value = fields.get(name)
        values[name] = float(checked(value, float, int)) if kind is float else checked(value, kind)
    for name in _OPTIONAL_FIELDS:
        value = fields.get(name)
        values[name] = None if value is None else checked(value, int)
    try:
        return flwr_private.Metadata(**values)
    except (TypeError, ValueError) as error:  # flwr knows which message types there are
        raise FrameError(f"metadata: {error}") from error


def _decode_error(fields: Any) -> Error:
    reason = checked(fields, dict).get("reason")
    # A strategy may make it a run's reason, which goes to every other client.
    return Error(code=checked(fields.get("code"), int), reason=None if reason is None else clip(checked(reason, str)))
