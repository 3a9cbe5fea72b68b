"""The demo's Flower app, as it trains on a device: one partition of the digits, chosen by `node_config`.

It uses neither MQTT nor the line: any Flower server could run it.
"""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedops_mqtt.demo import digits

DEFAULT_EPOCHS = 10
DEFAULT_LEARNING_RATE = 0.2
"""With these, five clients and five rounds, the global model is right about 96 times in a hundred."""

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this device's digits; answers with `arrays` and `metrics`."""
    config = message.content.config_records["config"]
    partition, mine = _load_mine(context)
    arrays, loss = digits.train(
        _model_in(message),
        mine,
        epochs=int(str(config.get("epochs", DEFAULT_EPOCHS))),
        learning_rate=float(str(config.get("learning-rate", DEFAULT_LEARNING_RATE))),
        seed=1000 * int(str(config.get("server-round", 0))) + partition,
    )
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(mine)})
    return Message(content=RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on this device's digits."""
    _, mine = _load_mine(context)
    loss, accuracy = digits.evaluate(_model_in(message), mine)
    metrics = MetricRecord({"eval_loss": loss, "eval_accuracy": accuracy, "num-examples": len(mine)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def _model_in(message: Message) -> digits.Arrays:
    return {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}


def _load_mine(context: Context) -> tuple[int, digits.Digits]:
    partition = int(context.node_config.get("partition-id", 0))
    return partition, digits.load_partition(partition, int(context.node_config.get("num-partitions", 1)))
