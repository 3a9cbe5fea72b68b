"""What servers leave on this machine, for people: global models and logs. Nothing outside their folders is opened."""

import codecs
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIX = ".safetensors"
MAX_HEADER_BYTES = 64 * 1024 * 1024
MAX_LOG_BYTES = 1024 * 1024
"""Of a log in one answer."""

_VERSION = re.compile(rf"(?P<name>.+)_gl_model_V(?P<version>[1-9]\d{{0,17}}){re.escape(SUFFIX)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """One version of a task's global model; `facts` is what the server wrote into it (run, round, metrics)."""

    path: Path
    model_name: str
    version: int
    size_bytes: int
    saved_at: float
    facts: dict[str, Any]


def list_models(store: str, task_id: str) -> list[ListedModel]:
    """Return the versions that a store on this machine holds of a task's model, newest first."""
    folder = _folder(store, task_id)
    if folder is None or not folder.is_dir():
        return []
    found = [_read(path, match) for path in folder.iterdir() if (match := _VERSION.fullmatch(path.name))]
    return sorted((each for each in found if each is not None), key=lambda each: each.version, reverse=True)


def find_model(store: str, task_id: str, file_name: str) -> ListedModel | None:
    """Return one version by its file name."""
    folder, match = _folder(store, task_id), _VERSION.fullmatch(file_name)
    if folder is None or match is None or Path(file_name).name != file_name:
        return None
    return _read(folder / file_name, match)


def read_log(path: Path, offset: int) -> tuple[str, int]:
    """Return a part of a log from a byte on, and where the next part begins; nothing where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            part = file.read(MAX_LOG_BYTES)
    except FileNotFoundError:
        return "", offset
    if len(part) == MAX_LOG_BYTES and b"\n" in part:
        part = part[: part.rindex(b"\n") + 1]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(part)
    return text, offset + len(part) - len(decoder.getstate()[0])  # without a character that is written by half


def _folder(store: str, task_id: str) -> Path | None:
    """Return a task's folder; None where the store is on another machine."""
    if "://" in store and not store.startswith("file://"):
        return None
    return Path(store.removeprefix("file://")).expanduser() / task_id


def _read(path: Path, match: re.Match[str]) -> ListedModel | None:
    try:
        found = path.stat()
        facts = _facts(path)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # another program's file
        return None
    return ListedModel(
        path=path,
        model_name=match["name"],
        version=int(match["version"]),
        size_bytes=found.st_size,
        saved_at=found.st_mtime,
        facts=facts,
    )


def _facts(path: Path) -> dict[str, Any]:
    """Return the facts in the header of a safetensors file; empty where another program wrote it."""
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        if num_bytes > MAX_HEADER_BYTES:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(num_bytes))
    metadata = header.get("__metadata__") or {}
    return dict(json.loads(metadata.get("facts", "{}")))
