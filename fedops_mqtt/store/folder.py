"""A folder that files appear in whole or not at all: here on this machine, `remote_folder` has those elsewhere.

`create` never overwrites, so of two writers of one name exactly one wins.
"""

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from fedops_mqtt.runtime.files import sync_entries, sync_file
from fedops_mqtt.store.errors import StoreUrlError
from fedops_mqtt.store.remote_folder import RemoteFolder

_TEMPORARY = ".tmp"
_SAFETENSORS_TEMPORARY = ".tmp"
"""safetensors writes to a file of its own first, whose name begins like this (0.8)."""
_PROBE = ".writable"
_LEFTOVER_AGE_S = 24 * 3600.0
"""A temporary file older than this was left by a writer that died."""

WriteFile = Callable[[Path], object]
"""Writes the file's contents to the path it is given."""


class LocalFolder:
    """A directory on this machine, made when the first file is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Return the names of the files in it; none where it does not exist yet."""
        try:
            return [entry.name for entry in os.scandir(self.path) if not _is_temporary(entry.name)]
        except FileNotFoundError:
            return []

    def locate(self, name: str) -> Path:
        """Return where the file of that name can be read."""
        return self.path / name

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Give a file's path, for as long as the block lasts; opening it shows whether there is one."""
        yield self.locate(name)

    def open(self, name: str) -> BinaryIO:
        """Open a file of which only a part is wanted."""
        return self.locate(name).open("rb")

    def create(self, name: str, write: WriteFile) -> Path:
        """Write a new file.

        Raises:
            FileExistsError: there is one of that name; it is left as it is.
        """
        with self._temporary(name, write) as temporary:
            try:
                os.link(temporary, self.path / name)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links (FAT, SMB, many of FUSE)
                # Take a name, which only one can: a reader in this moment finds an empty file, which is passed over
                os.close(os.open(self.path / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                temporary.replace(self.path / name)
        return self.path / name

    def replace(self, name: str, write: WriteFile) -> Path:
        """Write a file in the place of one of that name, if there is any."""
        with self._temporary(name, write) as temporary:
            temporary.replace(self.path / name)
        return self.path / name

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        self.locate(name).unlink(missing_ok=True)

    def check_writable(self, num_bytes: int) -> None:
        """Check that `num_bytes` can be written here now.

        Raises:
            OSError: they cannot; it carries why.
        """
        with self._temporary(_PROBE, Path.touch):
            usage = shutil.disk_usage(self.path)
        if usage.total > 0 and usage.free < num_bytes:  # some network file systems know neither
            problem = f"{os.strerror(errno.ENOSPC)}: {usage.free} bytes are free, {num_bytes} are needed"
            raise OSError(errno.ENOSPC, problem, str(self.path))

    @contextmanager
    def _temporary(self, name: str, write: WriteFile) -> Iterator[Path]:
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        temporary = self.path / f".{name}.{secrets.token_hex(4)}{_TEMPORARY}"
        try:
            write(temporary)
            sync_file(temporary)
            yield temporary
            sync_entries(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        oldest = time.time() - _LEFTOVER_AGE_S
        for entry in os.scandir(self.path):
            with contextlib.suppress(FileNotFoundError):
                if _is_temporary(entry.name) and entry.stat().st_mtime < oldest:
                    os.unlink(entry.path)


class Folder(Protocol):
    """What the store and the checkpoints need of a place."""

    def names(self) -> list[str]:
        """Return the names of the files in it."""
        ...

    def locate(self, name: str) -> Path | str:
        """Return what to call a file in a message."""
        ...

    def reading(self, name: str) -> AbstractContextManager[Path]:
        """Give a path that the file can be read at."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file of which only a part is wanted."""
        ...

    def create(self, name: str, write: WriteFile) -> Path | str:
        """Write a new file, whole or not at all."""
        ...

    def replace(self, name: str, write: WriteFile) -> Path | str:
        """Write a file in the place of another, whole or not at all."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def check_writable(self, num_bytes: int) -> None:
        """Raise an OSError where so much cannot be written."""
        ...


def open_folder(url: str) -> Folder:
    """Return the folder that a store URL names: a path, `file://` and an absolute path, or what fsspec takes (`s3://`).

    Raises:
        StoreUrlError: the URL has a scheme that is not supported, or names another host.
    """
    parts = urlsplit(url)
    if "://" not in url:
        return LocalFolder(Path(url).expanduser())
    if parts.scheme != "file":
        return RemoteFolder(url)
    if parts.netloc not in ("", "localhost"):
        raise StoreUrlError(url, f"file:// names another host, {parts.netloc!r}; write file:///path")
    return LocalFolder(Path(unquote(parts.path)))


def _is_temporary(name: str) -> bool:
    return name.endswith(_TEMPORARY) or name.startswith(_SAFETENSORS_TEMPORARY)
