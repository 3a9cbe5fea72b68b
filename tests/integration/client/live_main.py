"""A FedOps program as it was: model, data and functions in the script itself, registered as live objects.

Usage: live_main.py CONFIG_YAML MAC BROKER_URL STATE_DIR.
"""

import sys

import numpy as np

from fedops_mqtt.client.app import FLClientTask
from fedops_mqtt.client.client_api import ClientServerAPI

OFFSET = 1.0


def train_numpy(model, data, epochs, cfg):
    ClientServerAPI(cfg.task_id).put_client_system({"cpu": 0.5, "round": 7, "mine": {"batch": cfg.batch_size}})
    return [array + OFFSET * epochs for array in model]


def test_numpy(model, data, cfg):
    return float(model[0].sum()), 0.5, {"f1_score": 0.25}


registration = {
    "model": [np.zeros(2, np.float32)],
    "model_name": "Line",
    "train_data": list(range(8)),
    "test_data": list(range(4)),
    "train_numpy": train_numpy,
    "test_numpy": test_numpy,
}

if __name__ == "__main__":
    config, mac, broker, state_dir = sys.argv[1:]
    FLClientTask(config, registration, mac=mac, broker=broker, state_dir=state_dir).start()
