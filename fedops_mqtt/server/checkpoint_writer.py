"""Writes checkpoints beside the rounds: a round waits for the checkpoint of the one before, never for its own.

So a server that is killed has lost at most the round in hand and the one whose checkpoint was being written.
"""

import logging
import threading
from dataclasses import replace

import numpy as np

from fedops_mqtt.server.checkpoint import Checkpoint, CheckpointStore, StateValue
from fedops_mqtt.server.errors import ServerError

_log = logging.getLogger(__name__)


class CheckpointWriter:
    """One run's writer; `close` waits for what is being written. Used by one thread."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._writing: threading.Thread | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write; its arrays stay as they are from now on, what the strategy keeps is copied."""
        self.close()
        state = {name: _copied(value) for name, value in checkpoint.strategy.items()}
        frozen = replace(checkpoint, strategy=state)
        self._writing = threading.Thread(target=self._write, args=(frozen,), name="checkpoint", daemon=True)
        self._writing.start()

    def close(self) -> None:
        """Wait until the last checkpoint is written."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._store.save(checkpoint)
        except (ServerError, OSError) as error:  # a full disk: the run itself is not worse off
            _log.error("checkpoint was not saved", extra={"round": checkpoint.round, "problem": str(error)})


def _copied(value: StateValue) -> StateValue:
    """A strategy may change its arrays in place while they are written."""
    match value:
        case np.ndarray():
            return value.copy()
        case list():
            return [array.copy() for array in value]
        case dict():
            return {name: array.copy() for name, array in value.items()}
    return value
