"""Weights & Biases, beside the training and never in its way: a bounded queue and a thread that may fail or hang.

Names as in FedOps' `client_wandb`; wandb is imported when a run is started, nowhere else.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedops_mqtt.client.client_api import ClientServerAPI

logger = logging.getLogger(__name__)

_MAX_WAITING = 1000
"""Rounds that wait for a slow network; more are left out."""


def start_wandb(wandb_key: str | None, wandb_project: str, wandb_name: str) -> Any:
    """Log in and start a run (FedOps client_wandb.start_wandb); without a key, wandb's own settings hold."""
    import wandb

    if wandb_key:
        wandb.login(key=wandb_key)
    settings = wandb.Settings(console="off", silent=True)  # the training's output is its own
    return wandb.init(project=wandb_project, name=wandb_name, settings=settings)


def data_status_wandb(run: Any, labels: Sequence[tuple[Any, int]]) -> None:
    """Show how many examples there are of each label (FedOps client_wandb.data_status_wandb)."""
    import wandb

    table = wandb.Table(data=[list(row) for row in labels], columns=["label", "data_size"])
    bars = wandb.plot.bar(table, "label", "data_size", title="Data Size Distribution")
    run.log({"Data Lable Histogram": bars})


def client_system_wandb(
    fl_task_id: str,
    client_mac: str,
    client_name: str,
    gl_model_v: int,
    wandb_name: str,
    wandb_account: str,
    project: str,
) -> None:
    """Tell what W&B measured of this device during a run, a message a sample (FedOps client_wandb).

    What goes wrong is logged: these numbers are no reason to fail a training.
    """
    who = {"fl_task_id": fl_task_id, "client_mac": client_mac, "client_name": client_name}
    try:
        import wandb

        runs = wandb.Api().runs(f"{wandb_account}/{project}")
        run = next((run for run in runs if run.name == wandb_name), None)
        samples = run.history(stream="system", pandas=False) if run is not None else []
        for sample in samples:
            values = {name: sample.get(theirs) for theirs, name in SYSTEM_FIELDS.items()}
            ClientServerAPI(fl_task_id).put_client_system(
                {**values, **who, "gl_model_v": gl_model_v, "wandb_name": wandb_name}
            )
    except Exception as error:  # wandb is foreign code that may not touch the training
        logger.warning("wandb has no system numbers", extra={"why": f"{type(error).__name__}: {error}"})


SYSTEM_FIELDS = {
    "system.network.sent": "network_sent",
    "system.network.recv": "network_recv",
    "system.disk.in": "disk",
    "_runtime": "runtime",
    "system.proc.memory.rssMB": "memory_rssMB",
    "system.proc.memory.availableMB": "memory_availableMB",
    "system.cpu": "cpu",
    "system.proc.cpu.threads": "cpu_threads",
    "system.memory": "memory",
    "system.proc.memory.percent": "memory_percent",
    "_timestamp": "timestamp",
}
"""W&B's names of what it measures, and FedOps'."""


class WandbLog:
    """Logs rounds to a run that `start` makes in a thread of its own; nothing here blocks or raises."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._waiting: queue.Queue[tuple[dict[str, Any], int] | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Show numbers at a round; left out when wandb is too slow or has failed."""
        try:
            self._waiting.put_nowait((dict(values), step))
        except queue.Full:
            logger.debug("wandb is behind, a round is left out", extra={"step": step})

    def close(self, timeout_s: float) -> bool:
        """Finish the run; returns whether that was done in time."""
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return False
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            run = self._start()
            while (item := self._waiting.get()) is not None:
                values, step = item
                run.log(values, step=step)
            run.finish()
        except Exception as error:  # wandb is foreign code that may not touch the training
            logger.warning("wandb failed, the training goes on", extra={"why": f"{type(error).__name__}: {error}"})
            self._drop_all()

    def _drop_all(self) -> None:
        while True:
            try:
                self._waiting.get_nowait()
            except queue.Empty:
                return
