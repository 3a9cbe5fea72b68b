"""Publishes for an FL server without a bus: one JSON line a status or metrics message, on a descriptor it was given.

The run exists for its reader: when the reader has closed the pipe, the run is stopped.
"""

import logging
import os
import select
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedops_mqtt.aggregation.status_publisher import BusCallbacks, ServerSnapshot, ServerStatusPublisher
from fedops_mqtt.bus import BusOptions, EpochFile
from fedops_mqtt.protocol import ProtocolError, ServerClient, ServerMetrics, ServerStatus, encode
from fedops_mqtt.runtime.files import write_atomically
from fedops_mqtt.runtime.settings import ServerSettings
from fedops_mqtt.store.errors import StoreError
from fedops_mqtt.store.final_status import write_final_status

_log = logging.getLogger(__name__)


def keep_final_status(path: Path | None, status: ServerStatus, *, store: str | None = None) -> None:
    """Write a final status to the file that its manager reads, and into the store for a manager on another host.

    `path` None: nowhere. A full disk costs the run nothing.
    """
    if path is None:
        return
    try:
        content = encode(status)
        write_atomically(path, content)
    except (OSError, ProtocolError) as error:
        _log.error("the final status is not on disk, perhaps on the bus", extra={"problem": str(error)})
        return
    try:
        if store is not None and status.run_id is not None:
            write_final_status(store, content, task_id=status.task_id, run_id=status.run_id)
    except (OSError, StoreError) as error:
        _log.warning("the final status is not in the store, only on this host", extra={"problem": str(error)})


_LOOK_S = 0.5
"""Between two checks whether the pipe is still read."""
_NOBODY = "nothing reads this server's status"


def make_publisher(
    settings: ServerSettings, snapshot: ServerSnapshot, callbacks: BusCallbacks
) -> "ServerStatusPublisher | PipeStatusPublisher":
    """Return what publishes for this server: on the bus, or on the descriptor that `report_fd` names.

    Raises (on entry):
        BrokerUrlError: the broker's URL or a TLS file cannot be used.
    """
    if settings.report_fd is not None:
        return PipeStatusPublisher(snapshot, descriptor=settings.report_fd, on_departed=callbacks.on_replaced)
    return ServerStatusPublisher(
        snapshot,
        url=settings.broker,
        options=BusOptions.from_settings(settings),
        epochs=EpochFile(settings.state_dir / "server" / f"{snapshot.task_id}.epoch"),
        callbacks=callbacks,
        keep_final_status=partial(keep_final_status, settings.final_status_file, store=settings.store),
    )


class PipeStatusPublisher:
    """Writes one FL server's status and metrics to a pipe; same use as `ServerStatusPublisher`."""

    def __init__(self, snapshot: ServerSnapshot, *, descriptor: int, on_departed: Callable[[str], None]) -> None:
        self._snapshot = snapshot
        self._descriptor = descriptor
        self._on_departed = on_departed
        self._clients: dict[str, ServerClient] = {}
        self._seq = 0
        self._lock = threading.Lock()
        self._is_left = threading.Event()

    @property
    def snapshot(self) -> ServerSnapshot:
        """The status that would be published right now."""
        with self._lock:
            return replace(self._snapshot, clients=dict(self._clients))

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch_reader, name="reader", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_left.set()
        with self._lock:
            os.close(self._descriptor)

    def update(self, *, is_urgent: bool = True, **changes: Any) -> None:
        """Change the snapshot and publish it."""
        with self._lock:
            self._snapshot = replace(self._snapshot, **changes)
        with self._lock:
            self._seq += 1
            seq = self._seq
        self._write(encode(self.snapshot.to_status(0, seq)))

    def update_client(self, client_mac: str, client: ServerClient) -> None:
        """Change the status of one client, published with the next status."""
        with self._lock:
            self._clients[client_mac] = client

    def publish_metrics(self, metrics: ServerMetrics) -> None:
        """Write metrics."""
        self._write(encode(metrics))

    def finish(self, timeout_s: float, **changes: Any) -> bool:
        """Publish the final status."""
        self.update(**changes)
        return True

    def _watch_reader(self) -> None:
        """A server that waits for clients writes nothing, and would never find out that the pipe is closed."""
        looking = select.poll()
        looking.register(self._descriptor, 0)  # errors alone: the other end is closed
        while not self._is_left.wait(_LOOK_S):
            with self._lock:
                is_closed = not self._is_left.is_set() and bool(looking.poll(0))
            if is_closed:
                self._on_departed(_NOBODY)
                return

    def _write(self, line: bytes) -> None:
        try:
            with self._lock:
                os.write(self._descriptor, line + b"\n")
        except BrokenPipeError:
            self._on_departed(_NOBODY)
