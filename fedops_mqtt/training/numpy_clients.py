"""Flower's NumPyClient and Client with servers of both kinds: classic strategies, and those that send plain messages.

Flower itself gives such clients to classic strategies only (flwr 1.41 handle_legacy_message_from_msgtype).
"""

from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client
from flwr.clientapp import ClientApp
from flwr.common import EvaluateIns, FitIns, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.typing import Code, Parameters, Status

from fedops_mqtt.line.rounds import kind_of
from fedops_mqtt.protocol import number_of

_CLASSIC = ("fitins.parameters", "evaluateins.parameters")
"""Records that a classic strategy's message has (flwr 1.41 recorddict_compat)."""


class ClientRefusedError(Exception):
    """The client answered with a status that is not OK."""

    def __init__(self, status: Status) -> None:
        self.status = status
        super().__init__(f"the client answered {status.code.name}: {status.message}")


class AnyServerApp(ClientApp):
    """A ClientApp of `client_fn`, for servers of both kinds."""

    def __init__(self, client_fn: Callable[[Context], Client], *, is_registered: bool = False) -> None:
        super().__init__(client_fn=client_fn)
        self.is_registered = is_registered
        """It is FedOps' registration: how long it trained is published, as FedOps does."""
        self._make = client_fn

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        kind = kind_of(message)
        if kind not in ("train", "evaluate") or any(name in message.content for name in _CLASSIC):
            return super().__call__(message, context)
        answer = _train if kind == "train" else _evaluate
        return Message(content=answer(self._make(context), message.content), reply_to=message)


def _train(client: Client, content: RecordDict) -> RecordDict:
    names, parameters = _arrays_in(content)
    result = client.fit(FitIns(parameters, _config_in(content)))
    _check(result.status)
    values = parameters_to_ndarrays(result.parameters)
    known = names if len(names) == len(values) else [str(at) for at in range(len(values))]
    arrays = ArrayRecord({name: Array(value) for name, value in zip(known, values, strict=True)})
    metrics = {**_numbers(result.metrics), "num-examples": result.num_examples}
    return RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})


def _evaluate(client: Client, content: RecordDict) -> RecordDict:
    _, parameters = _arrays_in(content)
    result = client.evaluate(EvaluateIns(parameters, _config_in(content)))
    _check(result.status)
    metrics = {"loss": float(result.loss), **_numbers(result.metrics), "num-examples": result.num_examples}
    return RecordDict({"metrics": MetricRecord(metrics)})


def _arrays_in(content: RecordDict) -> tuple[list[str], Parameters]:
    record = next(iter(content.array_records.values()))
    return list(record), ndarrays_to_parameters([array.numpy() for array in record.values()])


def _config_in(content: RecordDict) -> dict[str, Any]:
    return {name: value for record in content.config_records.values() for name, value in record.items()}


def _numbers(metrics: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a MetricRecord can hold; texts are for classic strategies."""
    numbers = {name: number_of(value) for name, value in (metrics or {}).items()}
    return {name: float(n) if isinstance(n, bool) else n for name, n in numbers.items() if n is not None}


def _check(status: Status) -> None:
    if status.code is not Code.OK:
        raise ClientRefusedError(status)
