"""A device: `python client_main.py`, with FEDOPS_MQTT_BROKER and, to be one of several, FEDOPS_MQTT_PARTITION_ID."""

from data import load, split
from model import Images, make_model, test_numpy, train_numpy

from fedops_mqtt.client.app import FLClientTask


def make_fl_task(context):
    """Return what this device trains; `context` says which part of the data is its own."""
    config = context.node_config
    train, test = split(*load(int(config.get("partition-id", 0)), int(config.get("num-partitions", 1))))
    return {
        "model": make_model(),
        "model_name": "Softmax",
        "train_data": Images(*train),
        "test_data": Images(*test),
        "train_numpy": train_numpy,
        "test_numpy": test_numpy,
    }


if __name__ == "__main__":
    FLClientTask("config.yaml", "client_main:make_fl_task").start()
