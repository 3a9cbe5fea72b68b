"""Files that survive a power cut: written whole or not at all, with the folder entries that name them; and locks."""

import errno
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

SECRET_MODE = 0o600
FOLDER_MODE = 0o700


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by `content`, readable by its owner only: after a crash it is the old or the new one, whole.

    What root writes into another user's folder belongs to that user, who must go on reading what is renewed there.

    Raises:
        OSError: the disk is full or the folder is missing; the old file is as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if os.name == "posix" and os.geteuid() == 0:
                owner = path.parent.stat()
                os.fchown(handle, owner.st_uid, owner.st_gid)
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_entries(path.parent)


def why_unreadable(error: OSError | UnicodeDecodeError) -> str:
    """Return why a file that a person named could not be read as text."""
    return str(error.strerror) if isinstance(error, OSError) else f"it is not a text in UTF-8: {error}"


def delete_file(path: Path) -> None:
    """Delete a file where it is; that it cannot be deleted, on a disk that became read-only, is logged."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("a file cannot be deleted", extra={"path": str(path), "problem": str(error)})


REMOVED = ".removed-"
"""Begins the name of a folder that is being removed."""


def remove_atomically(folder: Path) -> None:
    """Remove a folder, a read-only one too; what cannot be removed now is left under a name that begins `REMOVED`."""
    # Renamed first: a power cut in the middle of a removal must not leave half a folder under its name.
    with suppress(OSError):
        folder = folder.rename(folder.with_name(f"{REMOVED}{secrets.token_hex(8)}"))
    for inner, _, _ in os.walk(folder):
        with suppress(OSError):
            os.chmod(inner, FOLDER_MODE)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def acting_as_owner(path: Path) -> Iterator[None]:
    """Do root's work in another user's folder with that user's rights: the whole process has no others meanwhile.

    What is made belongs to that user, and a link that the user has put there leads to nothing more than the user may
    write. The owner is that of the first folder on the way to `path` that is not root's.
    """
    owner = _first_owner(path) if os.name == "posix" and os.geteuid() == 0 else None
    if owner is None:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _first_owner(path: Path) -> os.stat_result | None:
    for each in (*reversed(path.absolute().parents), path):
        with suppress(FileNotFoundError):
            if (status := each.lstat()).st_uid != 0:
                return status
    return None


def mark_newest(path: Path, among: Iterable[Path]) -> None:
    """Set the time of a path to now, and after those of the others: a clock that is set back changes no order."""
    newest = time.time_ns()
    for each in among:
        with suppress(FileNotFoundError):  # removed meanwhile
            newest = max(newest, each.stat().st_mtime_ns + _STEP_NS if each != path else 0)
    os.utime(path, ns=(newest, newest))


_STEP_NS = 1_000_000
"""File systems and floats tell times apart that are so far from one another."""


def sync_file(path: Path) -> None:
    """Make a written file survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_entries(folder: Path) -> None:
    """Make a folder's entries survive a power cut, where its file system can (FUSE and SMB often cannot)."""
    if os.name != "posix":  # Windows opens no folders
        return
    try:
        sync_file(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner enters; one that is there is left as it is."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)  # two may need it at once
        path.chmod(FOLDER_MODE)


def write_private(path: Path, content: bytes) -> None:
    """Write a file as `write_atomically`, and make its folder, for its owner only, where it is missing."""
    make_private_folder(path.parent)
    write_atomically(path, content)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock against other processes of this machine; they wait."""
    import fcntl  # POSIX only, as the programs that lock

    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, SECRET_MODE)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
