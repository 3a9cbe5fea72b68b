"""An FL server of ours for the FedOps clients of these tests."""

import os

import numpy as np
from flwr.server.strategy import FedAvg

from fedops_mqtt.server import FLServer


def mean_accuracy(results):
    return {"accuracy": sum(n * metrics["accuracy"] for n, metrics in results) / sum(n for n, _ in results)}


if __name__ == "__main__":
    count = int(os.environ["FEDOPS_MQTT_MIN_CLIENTS"])
    FLServer(
        {"batch_size": 32, "num_epochs": 2},
        model=[np.zeros((2, 8), np.float32), np.zeros(2, np.float32)],
        model_name="halves",
        strategy=FedAvg(
            min_fit_clients=count,
            min_evaluate_clients=count,
            min_available_clients=count,
            evaluate_metrics_aggregation_fn=mean_accuracy,
        ),
    ).start()
