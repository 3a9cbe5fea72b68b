"""A classic FedOps or Flower program's two halves: a NumPyClient, and `start_server` when run as a program.

Usage: python -m classic_app HOST:PORT ROUNDS
"""

import sys

import numpy as np
from flwr.client import NumPyClient
from flwr.server import ServerConfig, start_server
from flwr.server.strategy import FedAvg


class AddOne(NumPyClient):
    def get_parameters(self, config):
        return [np.zeros(4, dtype=np.float32)]

    def fit(self, parameters, config):
        return [array + 1 for array in parameters], 1, {"train_loss": 0.5}

    def evaluate(self, parameters, config):
        return 0.25, 1, {"accuracy": 0.75}


if __name__ == "__main__":
    least = {f"min_{each}_clients": 1 for each in ("fit", "evaluate", "available")}
    history = start_server(
        server_address=sys.argv[1], config=ServerConfig(num_rounds=int(sys.argv[2])), strategy=FedAvg(**least)
    )
    print("distributed losses", [loss for _, loss in history.losses_distributed])
