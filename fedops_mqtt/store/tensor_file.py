"""Arrays with names and facts as one safetensors file: written whole or not at all, verified when read.

Nothing is ever unpickled; the digest in the file covers every name, dtype, shape and byte.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedops_mqtt.store.errors import CorruptFileError, UnsupportedArrayError

Arrays = dict[str, NDArray[Any]]
"""A model or part of one: arrays by name, in order."""

SUFFIX = ".safetensors"
_FORMAT = "fedops-mqtt/1"
_KINDS = "biuf"
"""numpy dtype kinds that safetensors holds: booleans, integers, floats (not complex, text, object or records)."""
_MAX_ITEM_BYTES = 8
"""safetensors has no long double."""
_RESERVED = "__metadata__"
"""The header's own entry for facts."""
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""safetensors' own limit."""


def check_storable(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Check that `write_tensors` can write these arrays, without writing them.

    Raises:
        UnsupportedArrayError: it cannot.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS or array.dtype.itemsize > _MAX_ITEM_BYTES:
            raise UnsupportedArrayError(name, f"has dtype {array.dtype}", "use a plain numeric dtype")
        if name == _RESERVED or not _is_text(name):
            raise UnsupportedArrayError(name, "has a name", "use another one")


def write_tensors(path: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write `arrays` and JSON-able `facts` to a new file at `path`; the caller makes it durable.

    Raises:
        UnsupportedArrayError: an array has a dtype or a name that the format cannot hold.
        OSError: the place cannot be written to.
    """
    check_storable(arrays)
    plain = {name: _to_plain(array) for name, array in arrays.items()}
    metadata = {
        "format": _FORMAT,
        "order": json.dumps(list(plain)),
        "facts": json.dumps(dict(facts)),
    }
    metadata["sha256"] = _digest(plain, metadata)
    try:
        save_file(plain, path, metadata=metadata)
    except SafetensorError as error:
        raise _os_error(error, path) or OSError(f"{path}: {error}") from error


def read_tensors(path: Path, *, shown_as: str | None = None) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays, in the order they were written, and the facts; `shown_as` is what an error calls the file.

    Raises:
        CorruptFileError: the file is cut, changed, or not one of this package.
        OSError: it cannot be read (FileNotFoundError: there is none).
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in json.loads(metadata["order"])}
        facts = dict(json.loads(metadata["facts"]))
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if os_error := _os_error(error, path):
            raise os_error from error
        raise CorruptFileError(shown_as or str(path), f"{type(error).__name__}: {error}") from error
    if metadata.get("sha256") != _digest(arrays, metadata):
        raise CorruptFileError(shown_as or str(path), "its contents do not have the checksum that it carries")
    return arrays, facts


def _os_error(error: Exception, path: Path) -> OSError | None:
    """Return the OSError (a full disk, a bad sector) that safetensors has made a text of."""
    number = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _to_plain(array: NDArray[Any]) -> NDArray[Any]:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.asarray(little, order="C")


def read_facts(file: BinaryIO) -> dict[str, Any]:
    """Return the facts in an open file's header without reading its arrays, so without verifying them.

    Raises:
        ValueError: it is no safetensors file, or not one of this package.
    """
    num_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if num_bytes > _MAX_HEADER_BYTES:
        raise ValueError("it is no safetensors file")
    try:
        return dict(json.loads(json.loads(file.read(num_bytes))[_RESERVED]["facts"]))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("fedops-mqtt has not written it") from error


def _digest(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for key in ("format", "order", "facts"):
        digest.update(f"{key}={metadata.get(key)}\n".encode())
    for name, array in arrays.items():
        digest.update(f"{name}:{array.dtype.str}:{array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
