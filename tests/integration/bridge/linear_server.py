"""An FL server of ours for clients that add one: classic FedAvg over two arrays of zeros."""

import os

import numpy as np
from flwr.server.strategy import FedAvg

from fedops_mqtt.server import FLServer

if __name__ == "__main__":
    count = int(os.environ.get("FEDOPS_MQTT_MIN_CLIENTS", "1"))
    FLServer(
        {"batch_size": 4, "num_epochs": 1},
        model=[np.zeros((2, 3), np.float32), np.zeros(2, np.float32)],
        model_name="linear",
        strategy=FedAvg(min_fit_clients=count, min_evaluate_clients=count, min_available_clients=count),
    ).start()
