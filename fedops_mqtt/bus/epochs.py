"""Where an owner keeps its last epoch, so that it stands above its earlier words after a restart with a wrong clock.

A lost or broken file is no disaster: the owner then reads its own retained topic and takes the higher epoch over.
"""

import logging
import os
import time
from pathlib import Path
from typing import Protocol

from fedops_mqtt.bus.errors import EpochFileError
from fedops_mqtt.core.ownership import latest_epoch

logger = logging.getLogger(__name__)


class EpochStore(Protocol):
    """Keeps one number."""

    def load(self) -> int:
        """Return the last epoch saved, 0 when there is none."""
        ...

    def save(self, epoch: int) -> None:
        """Keep an epoch; it is safe when this returns."""
        ...


class MemoryEpochs:
    """For a process without a state folder: the clock and the retained topic have to do."""

    def __init__(self, epoch: int = 0) -> None:
        self._epoch = epoch

    def load(self) -> int:
        """Return the last epoch saved."""
        return self._epoch

    def save(self, epoch: int) -> None:
        """Keep an epoch until the process ends."""
        self._epoch = epoch


class EpochFile:
    """One number in a file, replaced atomically and synced; its folder is made when needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> int:
        """Return the last epoch saved; 0, with a warning, when the file is broken."""
        try:
            return _check_epoch(int(self.path.read_text(encoding="ascii")))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            logger.warning(
                "epoch file cannot be read, starting anew", extra={"path": str(self.path), "why": str(error)}
            )
            return 0

    def save(self, epoch: int) -> None:
        """Keep an epoch.

        Raises:
            EpochFileError: the file cannot be written; an epoch that is not kept must not be used.
        """
        fresh = self.path.with_name(f"{self.path.name}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("w", encoding="ascii") as file:
                file.write(f"{epoch}\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            raise EpochFileError(str(self.path), str(error)) from error


def _check_epoch(epoch: int) -> int:
    if not 0 <= epoch <= latest_epoch(time.time_ns() // 1_000_000):
        raise ValueError("a number that is no epoch")
    return epoch


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; only POSIX systems open folders."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
