"""Live objects on their way from a user's program to its training process: pickled into a file without a name.

They go from parent to child on one machine and nowhere else: the file is passed as an open descriptor.
"""

import mmap
import os
import pickle
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

LIVE = "fl_task:live"
"""Stands where an app's import path stands."""


class LiveTaskError(ValueError):
    """Something in `fl_task` or `cfg` cannot be sent to the training process."""

    def __init__(self, name: str, value: object, problem: Exception) -> None:
        self.name = name
        super().__init__(
            f"{name} (a {type(value).__name__}) cannot be sent to the training process: "
            f"{type(problem).__name__}: {problem}. Let the training process make it: put a function that returns "
            "fl_task into a module of its own, say my_task.py, and pass its import path: "
            "FLClientTask(cfg, 'my_task:make_fl_task')"
        )


class LiveFile:
    """An open file without a name, closed with the last reference to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor = os.dup(file.fileno())
        self.close = weakref.finalize(self, os.close, self._descriptor)

    def fileno(self) -> int:
        """Return its descriptor; whoever is to keep it longer duplicates it."""
        return self._descriptor


def pack(fl_task: object, cfg: object, folder: Path) -> LiveFile:
    """Return a file with both in it.

    Raises:
        LiveTaskError: something in them cannot be pickled; names what.
        OSError: there is no room for it in `folder`.
    """
    import cloudpickle

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            cloudpickle.dump((fl_task, cfg), file)
        except OSError:
            raise
        except Exception as error:  # whatever the objects' own code raises
            raise _culprit(fl_task, cfg, error) from error
        file.flush()
        return LiveFile(file)


def unpack(descriptor: int) -> tuple[Any, Any]:
    """Return `(fl_task, cfg)` from the file that is open as `descriptor`, which may be read again and again."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
        found: tuple[Any, Any] = pickle.loads(content)  # noqa: S301  our parent wrote it, into a file without a name
    os.close(descriptor)
    return found


def _culprit(fl_task: object, cfg: object, problem: Exception) -> LiveTaskError:
    entries = fl_task.items() if isinstance(fl_task, Mapping) else [(None, fl_task)]
    for key, value in [*entries, ("cfg", cfg)]:
        name = "fl_task" if key is None else "cfg" if value is cfg else f"fl_task[{key!r}]"
        own = _problem_with(value)
        if own is not None:
            return LiveTaskError(name, value, own)
    return LiveTaskError("fl_task", fl_task, problem)


def _problem_with(value: object) -> Exception | None:
    import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception as error:
        return error
    return None
