"""FedOps' `client_wandb`, by its names; wandb is imported when a run is started, nowhere else."""

import logging
from collections.abc import Sequence
from typing import Any

from fedops_mqtt.client.client_api import ClientServerAPI
from fedops_mqtt.runtime.wandb_log import WandbLog, start_wandb

logger = logging.getLogger(__name__)

__all__ = ["WandbLog", "client_system_wandb", "data_status_wandb", "start_wandb"]


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
    """Report what W&B measured of this device during a run, a message a sample (FedOps client_wandb).

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
