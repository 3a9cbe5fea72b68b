"""Apps that go wrong or take their time, as a user might write them."""

import time

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

FLAT_OUT_S = 3.0

raising = ClientApp()
flat_out = ClientApp()


@raising.train()
def _raise(message: Message, context: Context) -> Message:
    raise ValueError("the disk with the training data is gone")


@flat_out.train()
def _compute(message: Message, context: Context) -> Message:
    """Keep one core busy without ever giving up the interpreter."""
    end = time.monotonic() + FLAT_OUT_S
    total = 0
    while time.monotonic() < end:
        total += sum(range(10_000))
    metrics = MetricRecord({"num-examples": 1, "train_loss": float(total > 0)})
    return Message(content=RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)


@flat_out.evaluate()
def _evaluate(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 1, "eval_loss": 0.0})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
