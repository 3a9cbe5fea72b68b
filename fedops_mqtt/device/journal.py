"""What a daemon keeps on disk: one folder per identity, with its facts and its lock.

Facts are written before anything they imply is done or published; a file that cannot be read is set aside.
"""

import fcntl
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from fedops_mqtt.core.client_state import ClientState
from fedops_mqtt.protocol import ReasonCode, check_task_id, mac_to_level
from fedops_mqtt.runtime.files import write_atomically

logger = logging.getLogger(__name__)

_FACTS = TypeAdapter(ClientState)
_FACTS_FILE = "journal.json"
_MAX_JOURNAL_BYTES = 8 * 1024 * 1024
"""A full journal has some 100 KB; a larger file is not ours and is not read into a small device's memory."""


class DaemonRunningError(RuntimeError):
    """Another daemon on this machine already serves this task with this MAC."""

    def __init__(self, task_id: str, client_mac: str, pid: int | None, path: Path) -> None:
        self.task_id = task_id
        self.client_mac = client_mac
        self.pid = pid
        who = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{who} already serves task {task_id} as {client_mac} on this machine (lock {path});"
            " end it, or give this client a MAC of its own"
        )


def identity_dir(state_dir: Path, task_id: str, client_mac: str) -> Path:
    """Return the folder of one identity below `state_dir`; neither name can lead out of it.

    Raises:
        IdentityError: `task_id` or `client_mac` is invalid.
    """
    return state_dir / "clients" / mac_to_level(client_mac) / check_task_id(task_id)


class ClientJournal:
    """The facts of one identity; `folder` is made when missing, readable by its owner only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._facts_file = folder / _FACTS_FILE
        self.written: ClientState | None = None
        """The facts that are on disk."""
        self._saving = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def load(self) -> ClientState:
        """Return the facts as last saved; none when there is no journal or it cannot be read (it is set aside)."""
        try:
            self.written = _FACTS.validate_python(_with_new_names(json.loads(_read_bounded(self._facts_file))))
        except FileNotFoundError:
            return ClientState()
        except (ValueError, RecursionError, OSError) as error:  # no JSON, or other facts
            self._set_aside(self._facts_file, error)
            return ClientState()
        return self.written

    def save(self, facts: ClientState) -> None:
        """Write `facts` so that they survive a power cut from here on; the same facts again cost nothing.

        Raises:
            OSError: the disk is full or the folder is missing.
        """
        with self._saving:
            if facts == self.written:
                return
            write_atomically(self._facts_file, _FACTS.dump_json(facts))
            self.written = facts

    def _set_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_suffix(".corrupt")
        logger.warning(
            "journal cannot be read, starting without it",
            extra={"path": str(path), "set_aside_as": str(aside), "error": str(error).splitlines()[0]},
        )
        try:
            path.replace(aside)
        except OSError as failure:
            logger.warning("journal cannot be set aside", extra={"path": str(path), "error": str(failure)})


def unapproved_app(folder: Path) -> str | None:
    """Return the digest of the app that the last start named, where it was rejected for want of its owner's approval.

    Read beside a daemon that runs: a journal that cannot be read is left to it.
    """
    try:
        last = _FACTS.validate_python(json.loads(_read_bounded(folder / _FACTS_FILE))).last_trigger
    except (ValueError, RecursionError, OSError):
        return None
    if last is None or last.reason_code is not ReasonCode.APP_NOT_APPROVED:
        return None
    named = re.search(r"[0-9a-f]{64}", last.reason or "")
    return named[0] if named else None


def _with_new_names(facts: Any) -> Any:
    """Return the facts of a journal that an earlier program wrote under the names of today."""
    return {_RENAMED.get(name, name): fact for name, fact in facts.items()} if isinstance(facts, dict) else facts


_RENAMED = {"in_hand": "active_training", "tombstones": "stop_records"}


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_JOURNAL_BYTES + 1)
    if len(content) > _MAX_JOURNAL_BYTES:
        raise OSError(f"larger than {_MAX_JOURNAL_BYTES} bytes")
    return content


@contextmanager
def identity_lock(folder: Path, *, task_id: str, client_mac: str) -> Iterator[None]:
    """Hold the lock of an identity; the system lets go of it whichever way the process ends.

    Raises:
        DaemonRunningError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "daemon.lock"
    with path.open("a+", encoding="ascii") as file:
        if not _lock(file):
            raise DaemonRunningError(task_id, client_mac, _holder(file), path)
        with suppress(OSError):  # a full disk: the number is for people, the lock is held
            file.truncate(0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        yield


def _holder(file: IO[str]) -> int | None:
    file.seek(0)
    text = file.read(32).strip()
    return int(text) if text.isdigit() else None


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
