"""A message's records as the content header lists them, and the buffers that follow it: both ways.

What a header says is checked before memory is taken for it, and what a buffer holds before anybody gets it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedops_mqtt.line import arrays, flwr_private
from fedops_mqtt.line.errors import FrameError
from fedops_mqtt.line.wire import Buffer

Compress = Callable[[bytes], bytes | None]
"""Returns None for what is not worth it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
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


def encode_record(name: str, record: Any, buffers: list[Buffer], compress: Compress | None) -> dict[str, Any]:
    """Return how the header lists a record; its buffers are added to `buffers`.

    Raises:
        FrameError: a value that a record cannot hold.
    """
    if isinstance(record, ArrayRecord):
        return {
            "name": name,
            "kind": "arrays",
            "items": [_encode_array(k, a, buffers, compress) for k, a in record.items()],
        }
    kind = "metrics" if isinstance(record, MetricRecord) else "configs"
    return {"name": name, "kind": kind, "items": [[key, _pack(value, buffers)] for key, value in record.items()]}


def _encode_array(key: str, array: Array, buffers: list[Buffer], compress: Compress | None) -> list[Any]:
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


def parts_of(record: Any) -> Iterator[Part]:
    """Yield the buffers that a record of the header announces, each checked before memory is taken for it."""
    items = checked(checked(record, dict).get("items"), list)
    if record.get("kind") == "arrays":
        yield from (_array_part(checked(item, list)) for item in items)
        return
    for item in items:
        value = item[1] if type(item) is list and len(item) == 2 else None
        for one in value if type(value) is list else [value]:
            if type(one) is dict and "bytes" in one:
                length = _length(one["bytes"])
                yield Part(wire_bytes=length, num_bytes=length)


def _array_part(item: list[Any]) -> Part:
    if len(item) != 6:
        raise FrameError(f"array header has {len(item)} fields, not 6")
    _, dtype, shape, stype, num_bytes, wire_bytes = item
    part = Part(
        wire_bytes=_length(wire_bytes),
        num_bytes=_length(num_bytes),
        stype=checked(stype, str),
        dtype=checked(dtype, str),
        shape=tuple(_length(axis) for axis in checked(shape, list)),
    )
    if part.stype == flwr_private.NUMPY_STYPE:
        arrays.check_declared(dtype=part.dtype, shape=part.shape, num_bytes=part.num_bytes)
    return part


def _length(value: Any) -> int:
    if checked(value, int) < 0:
        raise FrameError(f"a length of {value}")
    return cast(int, value)


def decode_records(records: list[Any], buffers: Iterator[tuple[Part, bytes]]) -> RecordDict:
    """Return the records that a header lists, out of its buffers in order.

    Raises:
        FrameError: they do not fit, or are none of Flower's.
    """
    content = RecordDict()
    try:
        for record in records:
            content[checked(record.get("name"), str)] = _decode_record(record, buffers)
    except (TypeError, ValueError, StopIteration) as error:  # flwr's records check their keys and values by themselves
        raise FrameError(f"record: {error!r}") from error
    return content


def _decode_record(record: dict[str, Any], buffers: Iterator[tuple[Part, bytes]]) -> Any:
    items = record["items"]
    match record.get("kind"):
        case "arrays":
            return ArrayRecord({checked(item[0], str): _make_array(*next(buffers)) for item in items})
        case "metrics":
            return MetricRecord({key: _unpack(value, buffers) for key, value in items})
        case "configs":
            return ConfigRecord({key: _unpack(value, buffers) for key, value in items})
    raise FrameError(f"unknown kind of record {record.get('kind')!r}")


def _make_array(part: Part, data: bytes) -> Array:
    return Array(dtype=part.dtype, shape=part.shape, stype=part.stype or "", data=data)


def _unpack(value: Any, buffers: Iterator[tuple[Part, bytes]]) -> Any:
    if type(value) is list:
        return [_unpack(item, buffers) for item in value]
    if type(value) is not dict:
        return value
    if "bytes" in value:
        return next(buffers)[1]
    if value.get("float") not in ("nan", "inf", "-inf"):
        raise FrameError("a value is an object that means nothing here")
    return float(value["float"])


def checked(value: Any, *types: type) -> Any:
    """Return a header's value if it is of one of these types, and of no subclass.

    Raises:
        FrameError: it is not.
    """
    if type(value) not in types:
        raise FrameError(f"header has {type(value).__name__} where {types[0].__name__} belongs")
    return value
