"""The apps that a device keeps: one read-only folder a digest, whole or not there at all.

A transfer that breaks goes on from its partial file. What is being written has a name that begins with `.new-`; it
becomes the app by one rename, so a power cut leaves the app or nothing, never half of it. Its manifest stays beside its
files: an app that a failing disk has changed is not used.
"""

import contextlib
import hashlib
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedops_mqtt.apps.bundle import MANIFEST, AppBundle, AppRefusedError, iter_contents, parse_manifest, write_manifest
from fedops_mqtt.runtime.files import REMOVED, acting_as_owner, locked, mark_newest, remove_atomically, sync_entries

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NEW = ".new-"
_PARTIAL = ".part"
_DAY_S = 24 * 3600.0
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLimits:
    """How much of what was delivered stays: at most so many apps, so many bytes, and none unused for longer."""

    num_apps: int = 5
    size_bytes: int = 500 * _MIB
    age_s: float = 90 * _DAY_S


class AppLibrary:
    """A folder of delivered apps; one process writes it at a time: a daemon, or whoever holds `locked`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writing = threading.RLock()
        """A training that was stopped leaves a thread that still writes its app; the next one waits for that."""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against other processes of this machine that write it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            yield

    def find(self, digest: str) -> Path | None:
        """Return the folder of an installed app, or None; reads all its files, None also where one has changed."""
        path = self._path(digest)
        with self._writing:
            if not path.is_dir():
                return None
            if not _is_intact(path):
                logger.warning("an installed app has changed on the disk and is not used", extra={"folder": str(path)})
                return None
            return path

    def installed(self) -> list[str]:
        """Return the digests of the installed apps, the last used first."""
        return [path.name for path in sorted(self._apps(), key=_used_at, reverse=True)]

    def partial(self, digest: str) -> Path:
        """Return the file that a transfer appends to; a broken one goes on at its end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._path(digest).with_suffix(_PARTIAL)

    def install(self, data: bytes, bundle: AppBundle) -> Path:
        """Write a checked bundle's files and return their folder; an intact app that is there is left as it is.

        Raises:
            OSError: the disk is full or cannot be written; nothing of the app is left.
        """
        with self._writing:
            return self.find(bundle.digest) or self._install(data, bundle)

    def _install(self, data: bytes, bundle: AppBundle) -> Path:
        target = self._path(bundle.digest)
        self.folder.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            remove_atomically(target)
        self._remove_leftovers()
        fresh = self.folder / f"{_NEW}{bundle.digest[:16]}-{secrets.token_hex(4)}"
        try:
            fresh.mkdir(mode=0o700)
            for path, content in iter_contents(data, bundle.files):
                _write(fresh / path, content)
            _write(fresh / MANIFEST, write_manifest(bundle.files))
            _seal(fresh)
            fresh.rename(target)
            sync_entries(self.folder)
        except BaseException:
            remove_atomically(fresh)
            raise
        self.partial(bundle.digest).unlink(missing_ok=True)
        return target

    def note_use(self, digest: str) -> None:
        """Remember that a run uses this app now; `prune` removes those first that were used longest ago."""
        mark_newest(self._path(digest), self._apps())

    def approve(self, digest: str) -> None:
        """Write down that this device's owner allows the app of this digest."""
        approval = self._approval(digest)
        with acting_as_owner(approval):
            approval.parent.mkdir(parents=True, exist_ok=True)
            approval.touch()
            sync_entries(approval.parent)

    def withdraw(self, digest: str) -> None:
        """Take an approval back; nothing happens where there was none."""
        approval = self._approval(digest)
        with acting_as_owner(approval):
            approval.unlink(missing_ok=True)

    def is_approved(self, digest: str) -> bool:
        """Return whether the owner has allowed this digest."""
        return self._approval(digest).exists()

    def prune(self, limits: KeepLimits, *, keep: frozenset[str] = frozenset()) -> list[str]:
        """Remove what is beyond the limits, the last used stays longest, and return the digests that went.

        `keep` names apps in use. Partial transfers and unfinished folders older than a day go as well.
        """
        with self._writing:
            return self._prune(limits, keep)

    def _prune(self, limits: KeepLimits, keep: frozenset[str]) -> list[str]:
        self._remove_leftovers()
        total, removed = 0, []
        for number, digest in enumerate(self.installed()):
            path = self._path(digest)
            total += sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
            is_old = time.time() - _used_at(path) > limits.age_s
            if digest not in keep and (is_old or number >= limits.num_apps or total > limits.size_bytes):
                remove_atomically(path)
                removed.append(digest)
        return removed

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest[:100]!r} is no SHA-256 digest")
        return self.folder / digest

    def _approval(self, digest: str) -> Path:
        return self.folder / "approved" / self._path(digest).name

    def _apps(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            yield from (Path(entry) for entry in os.scandir(self.folder) if _DIGEST.fullmatch(entry.name))

    def _remove_leftovers(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for entry in list(os.scandir(self.folder)):  # removing renames
                is_old = time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY_S
                if entry.name.startswith((_NEW, REMOVED)):  # one daemon writes here: whoever made it is dead
                    remove_atomically(Path(entry))
                elif entry.name.endswith(_PARTIAL) and is_old:
                    os.unlink(entry)


def _is_intact(folder: Path) -> bool:
    try:
        listed = parse_manifest((folder / MANIFEST).read_bytes())
        for path, each in listed.items():
            with (folder / path).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != each.sha256:
                    return False
    except (OSError, AppRefusedError):
        return False
    return bool(listed)


def _used_at(path: Path) -> float:
    return path.stat().st_mtime


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # O_EXCL and O_NOFOLLOW: a bundle was checked to name each file once, and there are no links in a fresh folder.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())


def _seal(folder: Path) -> None:
    """Make every folder read-only and its entries durable, the inner ones first."""
    inner = [Path(root) for root, _, _ in os.walk(folder)]
    for path in reversed(inner):
        path.chmod(0o555)
        sync_entries(path)
