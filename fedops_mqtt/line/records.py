"""A message's records as the content header lists them, and the buffers that follow it: both ways.

What a header declares is checked before memory is taken for it, and what a buffer holds before it is used.
"""

import ast
import gc
import math
import operator
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
import zstandard
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedops_mqtt.line import flwr_private
from fedops_mqtt.line.errors import FrameError
from fedops_mqtt.line.wire import Buffer, LineCompression

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
            data = decompress(data, self.num_bytes)
        if self.stype == flwr_private.NUMPY_STYPE and data:
            check_npy(data, dtype=self.dtype, shape=self.shape)
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
        check_declared(dtype=part.dtype, shape=part.shape, num_bytes=part.num_bytes)
    return part


def _length(value: Any) -> int:
    if checked(value, int) < 0:
        raise FrameError(f"a length of {value}")
    return cast(int, value)


def decode_records(records: list[Any], buffers: Iterator[tuple[Part, bytes]]) -> RecordDict:
    """Return the records that a header lists, out of its buffers in order.

    Raises:
        FrameError: they do not fit, or are not Flower's.
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


_NPY_MAGIC = b"\x93NUMPY"
_NPY_PREFIX_BYTES = {1: 10, 2: 12}
"""Magic, version and length of the npy header by major version (NEP 1; version 3 is for named fields only)."""
_MAX_NPY_HEADER_BYTES = 10_000
"""numpy's own limit for headers it parses safely (`numpy.lib.format._MAX_HEADER_SIZE`)."""
_USUAL_NPY_FIELDS = re.compile(
    rb"\{'descr': '([^'\\]+)', 'fortran_order': (False|True), 'shape': \((|N,|N(?:, N)+)\), \} *\n".replace(
        b"N", rb"(?:0|[1-9][0-9]*)"
    )
)
"""As numpy writes it, but for structured arrays. Python 3.11 cannot parse literals in two threads at once: now and then
one of them gets a `SystemError`, and a strategy that loads arrays is such a thread (seen with 3.11.2 and 3.11.7)."""
_SAMPLE_BYTES = 256 * 1024
_WORTHWHILE_RATIO = 0.9
"""Compression that saves less than a tenth costs more time than it saves on any link we know."""


def check_declared(*, dtype: str, shape: tuple[int, ...], num_bytes: int) -> None:
    """Check an array's header before any memory is taken for it; an empty dtype (classic Flower) declares nothing.

    Raises:
        FrameError: object dtype, or a length that does not fit dtype and shape.
    """
    if not dtype or (known := _known_dtype(dtype)) is None:
        return
    if known.hasobject:
        raise FrameError(f"arrays of dtype {dtype} would have to be unpickled")
    body_bytes = math.prod(shape) * known.itemsize
    if not body_bytes <= num_bytes <= body_bytes + _MAX_NPY_HEADER_BYTES:
        raise FrameError(f"{num_bytes} bytes cannot be an array of dtype {dtype} and shape {shape}")


def check_npy(data: bytes, *, dtype: str, shape: tuple[int, ...]) -> None:
    """Check that `data` is one npy array without objects, of just this length, dtype and shape.

    Raises:
        FrameError: it is not.
    """
    found = open_npy(data)
    if dtype and (found.shape != shape or not _is_same_dtype(dtype, found.dtype)):
        raise FrameError(f"npy array is {found.dtype}{found.shape}, its header has {dtype}{shape}")


def open_npy(data: bytes) -> NDArray[Any]:
    """Return the array that `data` holds in npy format, as a view of it.

    Raises:
        FrameError: it is invalid, an array of objects, or of another length.
    """
    header = npy_header(data)
    dtype, shape, order, body_bytes = _parse_npy_header(header)
    if len(data) != len(header) + body_bytes:
        raise FrameError(f"npy array of shape {shape} has {len(data)} bytes, not {len(header) + body_bytes}")
    try:
        return np.ndarray(shape, dtype, data, len(header), order=order)
    except ValueError as error:  # axes below 0, or too many of them
        raise FrameError(f"npy array of shape {shape}: {error}") from error


def npy_header(data: bytes) -> bytes:
    """Return how an array in npy format begins: dtype, shape and order. Two that begin alike differ in values only.

    Raises:
        FrameError: it is in another format, cut off, or too long.
    """
    major = data[6] if len(data) > 8 and data.startswith(_NPY_MAGIC) else 0
    if major not in _NPY_PREFIX_BYTES:
        raise FrameError("array data is not in npy format 1 or 2")
    prefix = _NPY_PREFIX_BYTES[major]
    header_end = prefix + int.from_bytes(data[8:prefix], "little")
    if header_end > min(len(data), _MAX_NPY_HEADER_BYTES):
        raise FrameError("npy header is cut off or too long")
    return data[:header_end]


def compress(data: bytes, compression: LineCompression | None) -> bytes | None:
    """Return `data` as one zstd frame, or None where that is off or not worth it."""
    if compression is None or len(data) < compression.threshold_bytes:
        return None
    compressor = zstandard.ZstdCompressor(level=compression.level)
    sample = memoryview(data)[:_SAMPLE_BYTES]
    if len(compressor.compress(sample)) > _WORTHWHILE_RATIO * len(sample):
        return None
    return compressor.compress(data)


class CompressOnce:
    """Compresses each array once, however many messages carry it; safe for many threads, the others wait for the first.

    Arrays are known by identity, so each is kept until `forget`.
    """

    def __init__(self, compression: LineCompression | None) -> None:
        self._compression = compression
        self._lock = threading.Lock()
        self._known: dict[int, tuple[bytes, bytes | None]] = {}

    def __call__(self, data: bytes) -> bytes | None:
        """Return what `compress` returns."""
        if self._compression is None:
            return None
        with self._lock:
            if id(data) not in self._known:
                self._known[id(data)] = (data, compress(data, self._compression))
            return self._known[id(data)][1]

    def forget(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._known.clear()


def decompress(data: bytes, num_bytes: int) -> bytes:
    """Return the `num_bytes` that one zstd frame holds; the frame has to declare that length first.

    Raises:
        FrameError: it is no zstd frame, or of another length.
    """
    try:
        if zstandard.frame_content_size(data) != num_bytes:
            raise FrameError(f"zstd frame does not hold the {num_bytes} bytes of its header")
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=num_bytes)
    except zstandard.ZstdError as error:
        raise FrameError(f"zstd: {error}") from error
    if len(raw) != num_bytes:
        raise FrameError(f"zstd frame holds {len(raw)} bytes, not {num_bytes}")
    return raw


@lru_cache(maxsize=4096)
def _parse_npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], Literal["C", "F"], int]:
    # Not numpy's own reader: it warns, and tokenizes, to mend headers that Python 2 wrote.
    try:
        fields = _npy_fields(header[_NPY_PREFIX_BYTES[header[6]] :])
        dtype = np.lib.format.descr_to_dtype(fields["descr"])
        shape = tuple(operator.index(axis) for axis in fields["shape"])
        order: Literal["C", "F"] = "F" if fields["fortran_order"] else "C"
    except (ValueError, TypeError, SyntaxError, LookupError, MemoryError, RecursionError) as error:
        raise FrameError(f"npy header: {error}") from error
    if dtype.hasobject:
        raise FrameError("npy arrays of objects would have to be unpickled")
    return dtype, shape, order, math.prod(shape) * dtype.itemsize


def _npy_fields(text: bytes) -> Any:
    if usual := _USUAL_NPY_FIELDS.fullmatch(text):
        descr, is_fortran_order, shape = usual.groups()
        axes = [int(axis) for axis in shape.replace(b",", b" ").split()]
        return {"descr": descr.decode("latin-1"), "fortran_order": is_fortran_order == b"True", "shape": axes}
    return ast.literal_eval(text.decode("latin-1"))


@lru_cache(maxsize=256)
def _known_dtype(name: str) -> np.dtype | None:
    try:
        return np.dtype(name)
    except (TypeError, ValueError, SyntaxError):  # names of other libraries (bfloat16): the npy header is checked
        return None


def _is_same_dtype(name: str, found: np.dtype) -> bool:
    known = _known_dtype(name)
    return known is None or known.newbyteorder("=") == found.newbyteorder("=")


_LIMIT_BYTES = 128 * 1024 * 1024
"""A full collection takes 50 to 100 ms with flwr loaded: little against moving this many bytes."""


class CycleCollector:
    """Watches a running count of bytes that were passed to foreign code; not for several threads at once."""

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._collected_at_bytes = 0

    def look(self, total_bytes: int) -> None:
        """Collect, if many bytes have passed since the last time; `total_bytes` is the count since the start."""
        if total_bytes - self._collected_at_bytes >= self._limit_bytes:
            self._collected_at_bytes = total_bytes
            gc.collect()
