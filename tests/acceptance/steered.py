"""A Flower app that does what the `device_plan` of its test says.

Each device adds its share to a place of its own in the model, so that after n rounds in which all took part every
number is n, and a round that was lost, or counted twice, shows.
"""

import ctypes
import os
import signal
import subprocess
import sys

import memory_group
import numpy as np
from device_plan import evaluation_of, own_plan
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp

GIGABYTE = 1024**3
LARGE = 4 * 1024**2


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    round_, mac = int(message.content["config"]["server-round"]), str(context.node_config["client-mac"])
    fault = own_plan().wait_for_round(mac, round_)
    return answer(message, context) if fault is None else FAULTS[fault](message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    round_, mac = int(message.content["config"]["server-round"]), str(context.node_config["client-mac"])
    own_plan().wait_for_round(evaluation_of(mac), round_)
    metrics = MetricRecord({"num-examples": 1, "eval_loss": 1.0})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def answer(message: Message, context: Context) -> Message:
    (array,) = message.content["arrays"].to_numpy_ndarrays()
    array = with_share(array, context)
    metrics = MetricRecord({"num-examples": 1, "train_loss": 0.5})
    return Message(content=RecordDict({"arrays": ArrayRecord([array]), "metrics": metrics}), reply_to=message)


def with_share(array: np.ndarray, context: Context) -> np.ndarray:
    number, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    array = array.copy()
    array[number] += count
    return array


class Steered(NumPyClient):
    """The same, as a classic client."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def fit(self, parameters, config):
        own_plan().wait_for_round(str(self.context.node_config["client-mac"]), int(config["server-round"]))
        return [with_share(parameters[0], self.context)], 1, {"train_loss": 0.5}

    def evaluate(self, parameters, config):
        return 1.0, 1, {}


def _make_client(context: Context) -> Client:
    return Steered(context).to_client()


classic = ClientApp(client_fn=_make_client)


def _segfault(message: Message, context: Context) -> Message:
    ctypes.string_at(0)
    return answer(message, context)


def _out_of_memory(message: Message, context: Context) -> Message:
    """Take memory until the kernel kills us; where it has no limit to hold us to, do as it does."""
    if not memory_group.enter():
        os.kill(os.getpid(), signal.SIGKILL)
    taken = []
    while True:
        taken.append(np.ones(LARGE))


def _memory_error(message: Message, context: Context) -> Message:
    np.ones((1 << 20, 1 << 20, 1 << 10))
    return answer(message, context)


def _exit(message: Message, context: Context) -> Message:
    print("leaving by the window", file=sys.stderr, flush=True)
    os._exit(7)


def _gigabyte(message: Message, context: Context) -> Message:
    chunk = "x" * (1 << 20)
    for _ in range(GIGABYTE >> 20):
        print(chunk)
    for number in range(30):
        print(f"line {number}", flush=True)
    os._exit(3)


def _fork(message: Message, context: Context) -> Message:
    """Two children: one in our group, one in a session of its own; then end badly."""
    subprocess.Popen(["sleep", "600"])
    subprocess.Popen(["setsid", "sleep", "600"], start_new_session=True)
    os._exit(4)


def _unstoppable(message: Message, context: Context) -> Message:
    """Ignore every signal that can be ignored, and never end; one child does the same."""
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
    subprocess.Popen([sys.executable, "-c", stubborn])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        signal.pause()


def _too_large(message: Message, context: Context) -> Message:
    reply = answer(message, context)
    reply.content["large"] = ArrayRecord([np.zeros(LARGE, np.uint8)])
    return reply


FAULTS = {
    "segfault": _segfault,
    "out-of-memory": _out_of_memory,
    "memory-error": _memory_error,
    "exit": _exit,
    "gigabyte": _gigabyte,
    "fork": _fork,
    "unstoppable": _unstoppable,
    "too-large": _too_large,
}
