"""FLServer and its clients in one process, without a broker: a run of any strategy or ServerApp in 0.2 s."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.clientapp import ClientApp
from line_parts import ThreadClient, mac_of

from fedops_mqtt.aggregation.checkpoint import CheckpointStore
from fedops_mqtt.protocol import ServerStatus
from fedops_mqtt.runtime.settings import ServerSettings
from fedops_mqtt.server.app import FLServer, RunResult
from fedops_mqtt.store.versions import ModelStore

WAIT_S = 300.0
NUM_CLIENTS = 3


class KilledError(BaseException):
    """Ends a server in the middle, as `kill -9` would: nothing is saved, nobody is told."""


class Task:
    """A task's runs, one after the other, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[dict[str, Any]] = []
        """What the last server reported, status and metrics."""
        self.clients: list[ThreadClient] = []

    @property
    def models(self) -> ModelStore:
        return ModelStore(str(self.folder / "store"), task_id="t", model_name="m")

    @property
    def kept(self) -> list[str]:
        """The files that are kept for later launches and runs."""
        folder = self.folder / "store" / "t" / ".checkpoints"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def round_kept(self, run_id: str) -> int:
        """The round that a run's checkpoint has come to."""
        kept = CheckpointStore(str(self.folder / "store"), task_id="t").load(run_id)
        return kept.round if kept is not None else 0

    def newest(self) -> list[np.ndarray]:
        newest = self.models.newest()
        assert newest is not None
        return list(newest.arrays.values())

    def run(
        self, app: ClientApp | Callable[[int], ClientApp], *, num_clients: int = NUM_CLIENTS, **arguments: Any
    ) -> RunResult:
        """One launch of a server from its start to its end; `app` serves all clients, or is made for each."""
        reader, writer = os.pipe()
        values = {
            "task_id": "t",
            "store": str(self.folder / "store"),
            "state_dir": self.folder / "state",
            "min_clients": num_clients,
            "join_limit_s": WAIT_S,
            "round_limit_s": WAIT_S,
            "report_fd": writer,
            **arguments.pop("settings", {}),
        }
        make = app if not isinstance(app, ClientApp) else lambda number: app
        server = FLServer(None, arguments.pop("model", None), "m", settings=ServerSettings(**values), **arguments)
        self.lines, self.clients = [], []
        listener = threading.Thread(target=self._listen, args=(reader, make, num_clients), daemon=True)
        listener.start()
        try:
            return server.start()
        finally:
            for client in self.clients:
                client.runner.stop("the server has ended")
            listener.join(WAIT_S)

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Wait for what no message tells of: a file that is written beside the rounds."""
        until = time.monotonic() + WAIT_S
        while not is_true():
            assert time.monotonic() < until
            time.sleep(0.005)

    @property
    def last(self) -> ServerStatus:
        return ServerStatus.model_validate(next(line for line in reversed(self.lines) if "status" in line))

    def metrics(self, round_: int) -> dict[str, Any]:
        """What was reported last of a round's numbers."""
        return next(line for line in reversed(self.lines) if "status" not in line and line["round"] == round_)

    def _listen(self, reader: int, make: Callable[[int], ClientApp], num_clients: int) -> None:
        with os.fdopen(reader) as pipe:
            for line in pipe:
                self.lines.append(json.loads(line))
                address = self.lines[-1].get("server_ip")
                if address and not self.clients:
                    self.clients = [
                        ThreadClient(address, make(number), mac=mac_of(number)) for number in range(1, num_clients + 1)
                    ]
