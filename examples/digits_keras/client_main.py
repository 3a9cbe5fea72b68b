"""A device: `python client_main.py`, with FEDOPS_MQTT_BROKER and, to be one of several, FEDOPS_MQTT_PARTITION_ID."""

from data import load, split

from fedops_mqtt.client.app import FLClientTask


def make_fl_task(context):
    """Return what this device trains; `context` says which part of the data is its own."""
    from model import make_model  # Keras is for the training process, not for the daemon

    config = context.node_config
    train, test = split(*load(int(config.get("partition-id", 0)), int(config.get("num-partitions", 1))))
    return {
        "model": make_model(),
        "model_name": "Net",
        "x_train": train[0],
        "y_train": train[1],
        "x_test": test[0],
        "y_test": test[1],
    }


if __name__ == "__main__":
    FLClientTask("config.yaml", "client_main:make_fl_task").start()
