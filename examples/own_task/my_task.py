"""A task of your own: each device has measurements of the same line, y = 3x + 1, and together they find it."""

import numpy as np
from flwr.client import NumPyClient
from flwr.server.strategy import FedAvg

from fedops_mqtt.server import FLServer

rng = np.random.default_rng()
x = rng.uniform(-1, 1, 200)
y = 3 * x + 1 + rng.normal(0, 0.1, 200)  # yours: read from the device; it never leaves it


class Device(NumPyClient):
    def fit(self, parameters, config):
        line = parameters[0]
        for _ in range(20):
            error = line[0] * x + line[1] - y
            line = line - 0.2 * np.array([error @ x, error.sum()]) / len(x)
        return [line], len(x), {"train_loss": float(np.mean(error**2))}

    def evaluate(self, parameters, config):
        return float(np.mean((parameters[0][0] * x + parameters[0][1] - y) ** 2)), len(x), {}


app = Device()
if __name__ == "__main__":
    FLServer({"task_id": "line"}, [np.zeros(2)], "line", strategy=FedAvg()).start()
