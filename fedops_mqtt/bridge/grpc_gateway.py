"""A classic Flower server for exactly one FedOps client, and the app that passes messages through it to that client.

To the line it is an ordinary ClientApp; to the old client it is the gRPC server that `getPort` named. Weights only pass
through: nothing is kept, and nothing of the client's code runs here.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from flwr import common
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy

from fedops_mqtt.line import flwr_private
from fedops_mqtt.line.flwr_private import legacy_records

logger = logging.getLogger(__name__)

_CLOSE_S = 1.0
"""An RPC that is still open is given this long when the gateway closes."""

Metrics = dict[str, int | float | list[int] | list[float]]
"""What a MetricRecord holds."""


class RelayError(RuntimeError):
    """A message cannot be passed on to the FedOps client, or its answer not back."""


class GrpcGateway:
    """Listens for one FedOps client on gRPC.

    Args:
        listen: `host:port`; port 0 takes a free one.
        on_departed: called (in a thread of gRPC's) when the client has disconnected without having been dismissed.

    Raises:
        OSError: the address is taken.
    """

    def __init__(self, listen: str, *, on_departed: Callable[[], None]) -> None:
        self._clients = _OneClient(on_departed)
        self._server, self.port = flwr_private.serve_classic(client_manager=self._clients, address=listen)

    def wait_for_client(self, timeout_s: float) -> bool:
        """Wait until the client has come; False when it did not in time."""
        return self._clients.wait(timeout_s)

    def give_up(self, problem: str) -> None:
        """Wait no longer for the client; a caller that waits gets the problem."""
        self._clients.give_up(problem)

    def ask(self, message: Message, context: Context) -> Message:
        """Pass one message of the line on and return the client's answer: what LineRunner calls as its app.

        A client that is not there any more gives a Flower Error; `on_departed` has reported that already.

        Raises:
            RelayError: the message is unknown to a classic client, or its answer does not fit.
        """
        client = self._clients.take()
        if client is None:
            return _error(message, self._clients.problem or "the FedOps client does not answer")
        try:
            content = _pass_on(client, message)
        except (ValueError, TypeError, KeyError) as error:
            raise RelayError(f"the FedOps client cannot answer this message: {error}") from error
        except flwr_private.ClassicStreamClosed:
            return _error(message, self._clients.problem or "the FedOps client's connection broke")
        return Message(content, reply_to=message)

    def dismiss(self, timeout_s: float) -> None:
        """Send the client the end of the run, so that it ends as finished, and stop listening."""
        client = self._clients.dismiss()
        if client is not None:
            goodbye = threading.Thread(target=_send_leave, args=(client,), name="gateway-goodbye", daemon=True)
            goodbye.start()
            goodbye.join(timeout_s)
        self._server.stop(_CLOSE_S).wait(_CLOSE_S)


class _OneClient(SimpleClientManager):
    """Flower's client manager for a single client; a second one is turned away."""

    def __init__(self, on_departed: Callable[[], None]) -> None:
        super().__init__()
        self.present: ClientProxy | None = None
        self.problem: str | None = None
        self._on_departed = on_departed
        self._changed = threading.Condition()
        self._is_over = False

    def register(self, client: ClientProxy) -> bool:
        with self._changed:
            if self.present is not None or self._is_over:
                return False
            self.present = client
            self._changed.notify_all()
            return True

    def unregister(self, client: ClientProxy) -> None:
        with self._changed:
            if self.present is not client:
                return
            self.present = None
            self.problem = self.problem or "the FedOps client has disconnected"
            is_loss = not self._is_over
            self._is_over = True
            self._changed.notify_all()
        if is_loss:
            self._on_departed()

    def wait(self, timeout_s: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self.present is not None or self._is_over, timeout_s)
            return self.present is not None

    def take(self) -> ClientProxy | None:
        with self._changed:
            self._changed.wait_for(lambda: self.present is not None or self._is_over)
            return self.present

    def give_up(self, problem: str) -> None:
        with self._changed:
            self.problem = self.problem or problem
            self._is_over = True
            self._changed.notify_all()

    def dismiss(self) -> ClientProxy | None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
            return self.present


def _error(message: Message, why: str) -> Message:
    return Message(Error(flwr_private.CLIENT_APP_RAISED, why), reply_to=message)


def _send_leave(client: ClientProxy) -> None:
    try:
        client.reconnect(common.ReconnectIns(seconds=None), timeout=None, group_id=None)
    except (flwr_private.ClassicStreamClosed, ValueError) as error:  # it left before, or still computes
        logger.debug("FedOps client disconnected before it left", extra={"problem": repr(error)})


def _pass_on(client: ClientProxy, message: Message) -> RecordDict:
    kind = message.metadata.message_type.partition(".")[0]
    content = message.content
    match kind:
        case "train" if "fitins.parameters" in content:
            fit = client.fit(legacy_records.recorddict_to_fitins(content, keep_input=False), None, None)
            return legacy_records.fitres_to_recorddict(fit, keep_input=False)
        case "evaluate" if "evaluateins.parameters" in content:
            evaluated = client.evaluate(legacy_records.recorddict_to_evaluateins(content, keep_input=False), None, None)
            return legacy_records.evaluateres_to_recorddict(evaluated)
        case "train" | "evaluate":
            return _pass_on_plain(client, kind, content)
        case "get_parameters":
            asked = legacy_records.recorddict_to_getparametersins(content)
            return legacy_records.getparametersres_to_recorddict(
                client.get_parameters(asked, None, None), keep_input=False
            )
        case "get_properties" | "query":
            wanted = legacy_records.recorddict_to_getpropertiesins(content)
            return legacy_records.getpropertiesres_to_recorddict(client.get_properties(wanted, None, None))
    raise RelayError(f"a classic Flower client has no {message.metadata.message_type!r}")


def _pass_on_plain(client: ClientProxy, kind: str, content: RecordDict) -> RecordDict:
    """Translate a message of a `flwr.serverapp` strategy: one array record in, one out under the same names."""
    [(name, arrays)] = content.array_records.items()
    keys = list(arrays.keys())
    config: dict[str, Any] = {key: value for record in content.config_records.values() for key, value in record.items()}
    parameters = common.ndarrays_to_parameters([array.numpy() for array in arrays.values()])
    if kind == "evaluate":
        evaluated = client.evaluate(common.EvaluateIns(parameters, config), None, None)
        _check(evaluated.status)
        measured: Metrics = {
            "loss": evaluated.loss,
            **_numbers(evaluated.metrics),
            "num-examples": evaluated.num_examples,
        }
        return RecordDict({"metrics": MetricRecord(measured)})
    fit = client.fit(common.FitIns(parameters, config), None, None)
    _check(fit.status)
    trained = common.parameters_to_ndarrays(fit.parameters)
    if len(trained) != len(keys):
        raise RelayError(f"the FedOps client returned {len(trained)} arrays for a model of {len(keys)}")
    answer = ArrayRecord({key: common.Array(array) for key, array in zip(keys, trained, strict=True)})
    metrics: Metrics = {**_numbers(fit.metrics), "num-examples": fit.num_examples}
    return RecordDict({name: answer, "metrics": MetricRecord(metrics)})


def _check(status: common.Status) -> None:
    if status.code is not common.Code.OK:
        raise RelayError(f"the FedOps client answered {status.code.name}: {status.message}")


def _numbers(metrics: dict[str, common.Scalar]) -> Metrics:
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}
