"""Apps as users write them: the good ones and the others."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp


class AddOne(NumPyClient):
    """Adds one to every weight."""

    def get_parameters(self, config):
        return [np.zeros(2, dtype=np.float32)]

    def fit(self, parameters, config):
        return [array + 1 for array in parameters], 1, {"loss": 0.5}

    def evaluate(self, parameters, config):
        return 0.25, 1, {"accuracy": 0.75}


an_object = AddOne()


def client_fn(context: Context) -> Client:
    return AddOne().to_client()


def make_app() -> ClientApp:
    return counting


counting = ClientApp()
"""Counts its trainings in `Context.state`; the count is its loss."""


@counting.train()
def count(message: Message, context: Context) -> Message:
    print("the user's print goes to stderr")
    before = context.state.metric_records.get("count", MetricRecord({"n": 0}))
    context.state["count"] = MetricRecord({"n": int(before["n"]) + 1})
    metrics = MetricRecord({"n": int(before["n"]) + 1, "num-examples": 1})
    return _reply(message, metrics)


@counting.evaluate()
def report_config(message: Message, context: Context) -> Message:
    numbers = {"partition": context.node_config["partition-id"], "batch": context.run_config["batch_size"]}
    return _reply(message, MetricRecord({**numbers, "num-examples": 1}))


def _reply(message: Message, metrics: MetricRecord) -> Message:
    content = RecordDict({"metrics": metrics})
    if "arrays" in message.content and message.metadata.message_type == "train":
        content["arrays"] = message.content["arrays"]
    return Message(content=content, reply_to=message)


def _raising(message: Message, context: Context) -> Message:
    raise ValueError("boom in training")


def _dying(message: Message, context: Context) -> Message:
    print("segfault ahead", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGSEGV)
    return message


def _endless(message: Message, context: Context) -> Message:
    while True:
        time.sleep(0.1)


def _busy(message: Message, context: Context) -> Message:
    """Keep a core busy until the user's coroutine, in another process, has gone on for ten turns, or for a second."""
    if "TEST_BEATS" not in os.environ:
        ends_at = time.monotonic() + 1.0
        while time.monotonic() < ends_at:
            sum(range(1000))
        return _reply(message, MetricRecord({"num-examples": 1}))
    beats = Path(os.environ["TEST_BEATS"])
    first = int(beats.read_text() or 0)
    while int(beats.read_text() or 0) < first + 10:
        sum(range(1000))
    return _reply(message, MetricRecord({"num-examples": 1}))


def _shouting(message: Message, context: Context) -> Message:
    print("a print of the app")
    print("an error of the app", file=sys.stderr)
    raise RuntimeError("beginning \ud800 " + "x" * 200_000 + " end")


def _many(number: type = float) -> dict:
    return {f"m{index}": number(index) for index in range(300)} | {"n" * 300: 1.0, "\x1b[2J": float("nan")}


def _measuring(message: Message, context: Context) -> Message:
    return _reply(message, MetricRecord({**_many(), "num-examples": 1, "several": [1.0, 2.0]}))


class MeasuringClient(AddOne):
    """Measures what no message of Flower's strategies takes, and more of it than the bus does."""

    def fit(self, parameters, config):
        measured = {**_many(np.float32), "huge": 10**400, "text": "x", "bytes": b"x", "list": [1]}
        return [array + 1 for array in parameters], 1, measured


measuring_client = MeasuringClient()


def _reading(message: Message, context: Context) -> Message:
    """Report how much of its configuration has arrived."""
    config = dict(context.run_config)
    numbers = {"chars": len(config["text"]), "key": len(max(config, key=len)), "names": len(config)}
    return _reply(message, MetricRecord({**numbers, "best": config["best"], "num-examples": 1}))


def _app(train) -> ClientApp:
    app = ClientApp()
    app.train()(train)
    app.evaluate()(report_config)
    return app


raising, dying, endless, busy = _app(_raising), _app(_dying), _app(_endless), _app(_busy)
shouting, measuring, reading = _app(_shouting), _app(_measuring), _app(_reading)
not_an_app = 42
registration = {"model": None}
