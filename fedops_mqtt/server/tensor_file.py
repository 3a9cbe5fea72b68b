"""Arrays with names and facts as one safetensors file: written whole or not at all, verified when read.

Nothing is ever unpickled; the digest in the file covers every name, dtype, shape and byte.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedops_mqtt.server.errors import CorruptFileError, UnsupportedArrayError

Arrays = dict[str, NDArray[Any]]
"""A model or part of one: arrays by name, in order."""

SUFFIX = ".safetensors"
_FORMAT = "fedops-mqtt/1"
_KINDS = "biuf"
"""numpy dtype kinds that safetensors holds: booleans, integers, floats (not complex, text, object or records)."""
_MAX_ITEM_BYTES = 8
"""safetensors has no long double."""


def write_tensors(path: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write `arrays` and JSON-able `facts` to a new file at `path`; the caller makes it durable.

    Raises:
        UnsupportedArrayError: an array has a dtype that the format cannot hold.
    """
    plain = {name: _to_plain(name, array) for name, array in arrays.items()}
    metadata = {
        "format": _FORMAT,
        "order": json.dumps(list(plain)),
        "facts": json.dumps(dict(facts)),
    }
    metadata["sha256"] = _digest(plain, metadata)
    save_file(plain, path, metadata=metadata)


def read_tensors(path: Path, *, said: str | None = None) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays, in the order they were written, and the facts; `said` is what an error calls the file.

    Raises:
        CorruptFileError: the file is cut, changed, or not one of ours.
        FileNotFoundError: there is none.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in json.loads(metadata["order"])}
        facts = dict(json.loads(metadata["facts"]))
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CorruptFileError(said or str(path), f"{type(error).__name__}: {error}") from error
    if metadata.get("sha256") != _digest(arrays, metadata):
        raise CorruptFileError(said or str(path), "its contents do not have the checksum that it carries")
    return arrays, facts


def _to_plain(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in _KINDS or array.dtype.itemsize > _MAX_ITEM_BYTES:
        raise UnsupportedArrayError(name, str(array.dtype))
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.asarray(little, order="C")


def _digest(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for key in ("format", "order", "facts"):
        digest.update(f"{key}={metadata.get(key)}\n".encode())
    for name, array in arrays.items():
        digest.update(f"{name}:{array.dtype.str}:{array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
