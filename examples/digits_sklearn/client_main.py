"""A device: `python client_main.py`, with FEDOPS_MQTT_BROKER and, to be one of several, FEDOPS_MQTT_PARTITION_ID."""

from data import load, split
from sklearn.linear_model import SGDClassifier

from fedops_mqtt.client.app import FLClientTask


def make_model():
    """Return the untrained estimator."""
    return SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, random_state=7, shuffle=False)


def make_fl_task(context):
    """Return what this device trains; `context` says which part of the data is its own."""
    config = context.node_config
    train, test = split(*load(int(config.get("partition-id", 0)), int(config.get("num-partitions", 1))))
    return {
        "model": make_model(),
        "model_name": "Linear",
        "classes": list(range(10)),
        "x_train": train[0],
        "y_train": train[1],
        "x_test": test[0],
        "y_test": test[1],
    }


if __name__ == "__main__":
    FLClientTask("config.yaml", "client_main:make_fl_task").start()
