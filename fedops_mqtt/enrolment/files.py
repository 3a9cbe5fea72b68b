"""Files that others must not read: written whole or not at all, for their owner only.

A file that a root user writes into another user's folder belongs to that user: the broker must go on reading what
`fedops-mqtt fleet` renews in its folder.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECRET_MODE = 0o600
FOLDER_MODE = 0o700


def make_folder(path: Path) -> None:
    """Make a folder that only its owner enters; one that is there is left as it is."""
    if not path.is_dir():
        path.mkdir(parents=True, mode=FOLDER_MODE)
        path.chmod(FOLDER_MODE)


def write_file(path: Path, content: bytes) -> None:
    """Write a file in one step, mode 0600: a reader sees the old one or the new one, also after a power cut."""
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, SECRET_MODE)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), SECRET_MODE)
        _give_to_owner_of(path.parent, file.fileno())
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Let one at a time change what is in a folder; others wait."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, SECRET_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _give_to_owner_of(folder: Path, descriptor: int) -> None:
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
