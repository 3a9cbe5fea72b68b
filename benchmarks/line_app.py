"""The one Flower app that every transport of `line.py` runs: handwritten digits, and dead weight to make it large.

The digits come from a file that the benchmark wrote, so that no library's data loader weighs on a client's memory.
"""

import json
import os
import socket
import threading
import time
from functools import cache
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from fedops_mqtt.demo import digits

NAMES = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")
FOLDER = "BENCH_FOLDER"
"""Variable: where the digits lie, and the files that hold a client."""
NUM_FLOATS = "BENCH_FLOATS"
"""Variable: numbers of dead weight in the model, four bytes each."""
QUORUM = "BENCH_QUORUM"
"""Variable: clients without which no round is done."""
GATE = "BENCH_GATE"
"""Variable: path of the socket that says when a round may begin."""
NUM_ROUNDS = 100_000
"""More than any benchmark does: whoever measures ends the run."""
_LEARNING_RATE = 0.2


class Digits(NumPyClient):
    """One epoch of the digits' small network; what follows it in the model comes back as it is."""

    def __init__(self, partition: int) -> None:
        folder = Path(os.environ[FOLDER])
        self._hold, self._held = folder / f"hold-{partition}", folder / f"held-{partition}"
        self._seen = folder / f"seen-{partition}"
        self._seed = partition
        self._digits = load_partition(folder / "digits.npz", partition)

    def fit(self, parameters, config):
        self._wait_if_held()
        model = dict(zip(NAMES, parameters, strict=False))
        trained, _ = digits.train(model, self._digits, epochs=1, learning_rate=_LEARNING_RATE, seed=self._seed)
        return [*trained.values(), *parameters[len(NAMES) :]], len(self._digits), {}

    def evaluate(self, parameters, config):
        loss, accuracy = digits.evaluate(dict(zip(NAMES, parameters, strict=False)), self._digits)
        return loss, len(self._digits), {"accuracy": accuracy}

    def _wait_if_held(self) -> None:
        """Tell that this client takes part; one that is to be killed in the middle of a round says so and stays."""
        if not self._seen.exists():
            self._seen.touch()
        if self._hold.exists():
            self._held.touch()
            threading.Event().wait()


@cache
def load_partition(file: Path, partition: int) -> digits.Digits:
    """Read a client's digits once a process, however often the client is made anew."""
    with np.load(file) as parts:
        share = partition % int(parts["num_partitions"])
        return digits.Digits(pixels=parts[f"pixels-{share}"], labels=parts[f"labels-{share}"])


def client_fn(context: Context):
    return Digits(int(context.node_config["partition-id"])).to_client()


app = ClientApp(client_fn=client_fn)


class Gate:
    """The server's side of a turnstile between rounds: tells when a round's model was there, and waits to go on."""

    def __init__(self) -> None:
        self._line = None
        self._went_at = 0.0

    def __call__(self, round_, *_):
        """Stand in for the evaluation that every server does between two rounds."""
        called_at = time.monotonic()
        if self._line is None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(os.environ[GATE])
            self._line = connection.makefile("rw")
        told = {"round": round_, "called_at": called_at, "duration_s": called_at - self._went_at, "pid": os.getpid()}
        self._line.write(json.dumps(told) + "\n")
        self._line.flush()
        self._line.readline()
        self._went_at = time.monotonic()


def initial_arrays() -> list[np.ndarray]:
    """Return the network and, after it, noise: weights do not compress, and nobody is to think that they do."""
    dead_weight = np.random.default_rng(0).random(int(os.environ[NUM_FLOATS]), dtype=np.float32)
    network = digits.initial_arrays()
    return [*(network[name] for name in NAMES), *([dead_weight] if dead_weight.size else [])]


def make_strategy(**more) -> FedAvg:
    """Return FedAvg over everybody, content with the quorum when one is gone."""
    least = int(os.environ[QUORUM])
    return FedAvg(min_fit_clients=least, min_evaluate_clients=least, min_available_clients=least, **more)


def whole_strategy() -> FedAvg:
    """Return the strategy with model and gate, for Flower's own servers."""
    return make_strategy(initial_parameters=ndarrays_to_parameters(initial_arrays()), evaluate_fn=Gate())


def server_fn(context: Context) -> ServerAppComponents:
    return ServerAppComponents(strategy=whole_strategy(), config=ServerConfig(num_rounds=NUM_ROUNDS))


server_app = ServerApp(server_fn=server_fn)
