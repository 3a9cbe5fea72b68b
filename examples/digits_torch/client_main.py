"""A device: `python client_main.py`, with FEDOPS_MQTT_BROKER and, to be one of several, FEDOPS_MQTT_PARTITION_ID."""

from data import load, split
from model import make_loader, make_model, test_torch, train_torch

from fedops_mqtt.client.app import FLClientTask

BATCH = 32


def make_fl_task(context):
    """Return what this device trains; `context` says which part of the data is its own."""
    config = context.node_config
    train, test = split(*load(int(config.get("partition-id", 0)), int(config.get("num-partitions", 1))))
    return {
        "model": make_model(),
        "model_name": "Net",
        "train_loader": make_loader(*train, BATCH),
        "val_loader": make_loader(*test, BATCH),
        "test_loader": make_loader(*test, BATCH),
        "train_torch": train_torch,
        "test_torch": test_torch,
    }


if __name__ == "__main__":
    FLClientTask("config.yaml", "client_main:make_fl_task").start()
