"""A folder in any place that fsspec takes (`s3://bucket/path`, …): files are uploaded whole and read from a copy.

A file appears when its upload is complete, and `create` asks the place itself not to overwrite: of two writers of one
name exactly one wins (S3: a conditional PUT).
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from fedops_mqtt.bus.address import without_password
from fedops_mqtt.runtime.extras import how_to_install
from fedops_mqtt.store.errors import StoreUrlError

_READ_ONLY = ("http://", "https://")
_PROBE = ".writable"
_BLOCK_BYTES = 64 * 1024
"""Of a model's file the header is read, not the numbers."""
_PARTS_AT_ONCE = 2
"""Of an upload to S3, each of 50 MiB and held in memory; s3fs takes ten by default, half a gigabyte."""
_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "pre-conditions")
"""How S3 reports that a name is taken, or being taken, by another writer."""


class RemoteFolder:
    """A folder at a URL; same use as `LocalFolder`.

    Raises:
        StoreUrlError: fsspec has no such place, or the package for it is not installed.
    """

    def __init__(self, url: str, *, options: dict[str, Any] | None = None) -> None:
        self._url = url.rstrip("/")
        if url.startswith(_READ_ONLY):
            raise StoreUrlError(
                url, "nothing can be written there; give a directory, or a URL such as s3://bucket/models"
            )
        try:
            import fsspec

            self._fs, self._root = fsspec.core.url_to_fs(
                self._url,
                **{"max_concurrency": _PARTS_AT_ONCE} if url.startswith(("s3://", "s3a://")) else {},
                **(options or {}),
            )
        except ImportError as error:
            missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error  # fsspec advises conda
            raise StoreUrlError(url, how_to_install(missing)) from error
        except ValueError as error:
            raise StoreUrlError(url, str(error)) from error

    def names(self) -> list[str]:
        """Return the names of the files in it; none where it does not exist yet."""
        with self._problems():
            self._fs.invalidate_cache()
            try:
                return [PurePosixPath(path).name for path in self._fs.ls(self._root, detail=False)]
            except FileNotFoundError:
                return []

    def locate(self, name: str) -> str:
        """Return the URL of the file of that name."""
        return f"{self._url}/{name}"

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Give a copy of a file on this machine, for as long as the block lasts.

        Raises:
            FileNotFoundError: there is no file of that name.
        """
        with tempfile.TemporaryDirectory(prefix="fedops-mqtt-") as folder:
            copy = Path(folder) / name
            with self._problems():
                self._fs.get_file(self._path(name), str(copy))
            yield copy

    def open(self, name: str) -> BinaryIO:
        """Open a file of which only a part is wanted: no more than that is fetched."""
        with self._problems():
            return cast(BinaryIO, self._fs.open(self._path(name), "rb", block_size=_BLOCK_BYTES))

    def create(self, name: str, write: Callable[[Path], object]) -> str:
        """Write a new file.

        Raises:
            FileExistsError: there is one of that name; it is left as it is.
        """
        self._put(name, write, mode="create")
        return self.locate(name)

    def replace(self, name: str, write: Callable[[Path], object]) -> str:
        """Write a file in the place of one of that name, if there is any."""
        self._put(name, write)
        return self.locate(name)

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        with self._problems(), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def check_writable(self, num_bytes: int) -> None:
        """Check that something can be written here; how much cannot be known.

        Raises:
            OSError: it cannot; it carries why.
        """
        self.replace(_PROBE, Path.touch)
        with contextlib.suppress(OSError):  # who may write need not be allowed to remove
            self.remove(_PROBE)

    def _put(self, name: str, write: Callable[[Path], object], **how: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="fedops-mqtt-") as folder:
            whole = Path(folder) / name
            write(whole)
            with self._problems():
                self._fs.put_file(str(whole), self._path(name), **how)

    @contextmanager
    def _problems(self) -> Iterator[None]:
        """Make OSErrors of what a place raises: each has exceptions of its own."""
        try:
            yield
        except OSError as error:
            if _is_taken(error):
                raise FileExistsError(f"{without_password(self._url)}: {error}") from error
            raise
        except Exception as error:
            if _is_taken(error):
                raise FileExistsError(f"{without_password(self._url)}: {error}") from error
            raise OSError(f"model store {without_password(self._url)}: {type(error).__name__}: {error}") from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _is_taken(error: BaseException) -> bool:
    text = f"{type(error).__name__} {error} {error.__cause__}"
    return isinstance(error, FileExistsError) or any(sign in text for sign in _TAKEN)
