"""The ClientApps of the project: messages with mods and state, and the classic kind."""

from collections.abc import Callable

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, fixedclipping_mod

CLIPPING = "clipping_norm"
"""Flower's differential privacy says it to the clients; its mod takes it for granted."""


def clip_where_asked(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    if CLIPPING in message.content["config"]:
        return fixedclipping_mod(message, context, call_next)
    return call_next(message, context)


app = ClientApp()


@app.train(mods=[clip_where_asked, arrays_size_mod])
def train(message: Message, context: Context) -> Message:
    before = context.state.metric_records.get("so-far", MetricRecord({"trainings": 0}))
    context.state["so-far"] = MetricRecord({"trainings": int(before["trainings"]) + 1})
    step = int(context.run_config["local-epochs"]) * float(context.run_config["step.size"])
    arrays = [array + step for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = {"num-examples": 10, "trainings": int(before["trainings"]) + 1}
    content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)}
    return Message(content=RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    (array,) = message.content["arrays"].to_numpy_ndarrays()
    metrics = {"num-examples": 10, "eval_first": float(array[0]), "partition": int(context.node_config["partition-id"])}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


class Adding(NumPyClient):
    def __init__(self, partition: int, place: str) -> None:
        self.partition = partition
        self.place = place

    def fit(self, parameters, config):
        return [array + 1 for array in parameters], 10, {"partition": self.partition}

    def evaluate(self, parameters, config):
        return float(parameters[0][0]), 10, {"is_upstairs": self.place == "up stairs"}


def client_fn(context: Context) -> Client:
    return Adding(int(context.node_config["partition-id"]), str(context.node_config["place"])).to_client()


classic = ClientApp(client_fn=client_fn)
