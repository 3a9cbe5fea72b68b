"""Writes checkpoints beside the rounds: a round waits for the checkpoint of the one before, never for its own.

So a server that is killed has lost at most the round in hand and the one whose checkpoint was being written.
"""

import logging
import threading

from fedops_mqtt.aggregation.checkpoint import Checkpoint, CheckpointStore
from fedops_mqtt.aggregation.errors import ServerError
from fedops_mqtt.store.errors import StoreError

_log = logging.getLogger(__name__)


class CheckpointWriter:
    """One run's writer; `close` waits for what is being written. Used by one thread."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._writing: threading.Thread | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write; what is in it stays as it is from now on."""
        self.close()
        self._writing = threading.Thread(target=self._write, args=(checkpoint,), name="checkpoint", daemon=True)
        self._writing.start()

    def close(self) -> None:
        """Wait until the last checkpoint is written."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._store.save(checkpoint)
        except (ServerError, StoreError, OSError) as error:  # a full disk: the run itself is not worse off
            _log.error("checkpoint was not saved", extra={"round": checkpoint.round, "problem": str(error)})
