"""One array's bytes on the line: is it what it says, and zstd where asked for.

An array travels as the bytes that flwr keeps (`Array.data`: the `numpy.save` format). It is checked here so that
nothing that would have to be unpickled, and nothing of another length than it says, gets as far as a strategy.
"""

import ast
import math
import operator
import threading
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import zstandard
from numpy.typing import NDArray

from fedops_mqtt.line.errors import FrameError
from fedops_mqtt.line.limits import LineCompression

_NPY_MAGIC = b"\x93NUMPY"
_NPY_PREFIX_BYTES = {1: 10, 2: 12}
"""Magic, version and length of the npy header by major version (NEP 1; version 3 is for named fields only)."""
_MAX_NPY_HEADER_BYTES = 10_000
"""numpy's own limit for headers it parses safely (`numpy.lib.format._MAX_HEADER_SIZE`)."""
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
        raise FrameError(f"npy array is {found.dtype}{found.shape}, its header says {dtype}{shape}")


def open_npy(data: bytes) -> NDArray[Any]:
    """Return the array that `data` holds in npy format, as a view of it.

    Raises:
        FrameError: it is none, an array of objects, or of another length.
    """
    major = data[6] if len(data) > 8 and data.startswith(_NPY_MAGIC) else 0
    if major not in _NPY_PREFIX_BYTES:
        raise FrameError("array data is not in npy format 1 or 2")
    prefix = _NPY_PREFIX_BYTES[major]
    header_end = prefix + int.from_bytes(data[8:prefix], "little")
    if header_end > min(len(data), _MAX_NPY_HEADER_BYTES):
        raise FrameError("npy header is cut off or too long")
    dtype, shape, order, body_bytes = _parse_npy_header(data[:header_end])
    if len(data) != header_end + body_bytes:
        raise FrameError(f"npy array of shape {shape} has {len(data)} bytes, not {header_end + body_bytes}")
    try:
        return np.ndarray(shape, dtype, data, header_end, order=order)
    except ValueError as error:  # axes below 0, or too many of them
        raise FrameError(f"npy array of shape {shape}: {error}") from error


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
    """Return the `num_bytes` that one zstd frame holds; the frame has to say that length itself first.

    Raises:
        FrameError: it is no zstd frame, or of another length.
    """
    try:
        if zstandard.frame_content_size(data) != num_bytes:
            raise FrameError(f"zstd frame does not hold the {num_bytes} bytes that its header says")
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
        fields = ast.literal_eval(header[_NPY_PREFIX_BYTES[header[6]] :].decode("latin-1"))
        dtype = np.lib.format.descr_to_dtype(fields["descr"])
        shape = tuple(operator.index(axis) for axis in fields["shape"])
        order: Literal["C", "F"] = "F" if fields["fortran_order"] else "C"
    except (ValueError, TypeError, SyntaxError, LookupError, MemoryError, RecursionError) as error:
        raise FrameError(f"npy header: {error}") from error
    if dtype.hasobject:
        raise FrameError("npy arrays of objects would have to be unpickled")
    return dtype, shape, order, math.prod(shape) * dtype.itemsize


@lru_cache(maxsize=256)
def _known_dtype(name: str) -> np.dtype | None:
    try:
        return np.dtype(name)
    except (TypeError, ValueError, SyntaxError):  # names of other libraries (bfloat16): the npy header is checked
        return None


def _is_same_dtype(name: str, found: np.dtype) -> bool:
    known = _known_dtype(name)
    return known is None or known.newbyteorder("=") == found.newbyteorder("=")
