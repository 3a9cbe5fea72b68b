"""A user's program for the published FedOps client: nothing of ours in it."""

import sys

from fedops.client import client_utils
from fedops.client.app import FLClientTask
from fedops_task import make_data, make_model, test_torch, train_torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

if __name__ == "__main__":
    task_id, seed = sys.argv[1], int(sys.argv[2])
    cfg = OmegaConf.create(
        {
            "task_id": task_id,
            "dataset": {"name": "halves", "validation_split": 0.2},
            "model": {"output_size": 2},
            "wandb": {"use": False},
            "model_type": "Pytorch",
            "batch_size": 32,
            "num_epochs": 2,
            "num_rounds": 3,
        }
    )
    client_utils.local_model_directory(task_id)
    train, val, test = (DataLoader(make_data(10 * seed + i, n), batch_size=32) for i, n in enumerate((256, 64, 64)))
    FLClientTask(
        cfg,
        {
            "model": make_model(),
            "model_name": "Linear",
            "train_loader": train,
            "val_loader": val,
            "test_loader": test,
            "train_torch": train_torch,
            "test_torch": test_torch,
        },
    ).start()
