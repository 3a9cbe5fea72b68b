"""A training process for tests: `line_client.py JOB`, JOB being JSON for LineRunner and `mode`; says JSON lines."""

import json
import sys
import threading
import tracemalloc

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedops_mqtt.line.runner import LineRunner

job = json.loads(sys.argv[1])
mode = job.pop("mode", "echo")
app = ClientApp()


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


@app.train()
def train(message: Message, context: Context) -> Message:
    say(training=message.metadata.message_id)
    if mode == "hang":
        threading.Event().wait()
    if mode == "ask":
        sys.stdin.readline()
    content = RecordDict(dict(message.content))
    if mode == "memory":
        content["arrays"] = ArrayRecord({name: own(array) for name, array in message.content["arrays"].items()})
    content["metrics"] = MetricRecord({"num-examples": 1})
    return Message(content, reply_to=message)


def own(array: Array) -> Array:
    """Return an answer that is no part of the message, made without a byte more than it has."""
    data = bytes(memoryview(array.data))
    return Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=data)


if mode == "memory":
    tracemalloc.start()
end = LineRunner(**job).run(app)
if mode == "memory":
    say(peak_bytes=tracemalloc.get_traced_memory()[1])
say(outcome=end.outcome, reason=end.reason)
