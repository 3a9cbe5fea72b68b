"""Classic strategies (`flwr.server.strategy`) on the line: `start_grid` with a client manager and a server of our own.

Flower's own manager waits a day for clients and looks for new ones every five seconds; this one never waits for ever.
Flower's own server asks each client in a thread of its own; this one asks all of them with one call of the Grid.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.server import History, Server, ServerConfig, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat import start_grid
from flwr.server.strategy import Strategy

from fedops_mqtt.line.flwr_private import CLASSIC_OK, legacy_records
from fedops_mqtt.line.grid import LineGrid

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """What is asked, and how instructions and results travel in records."""

    message_type: str
    encode: Callable[[Any], RecordDict]
    decode: Callable[[RecordDict], Any]


_TRAIN = _Kind(
    message_type=MessageType.TRAIN,
    encode=partial(legacy_records.fitins_to_recorddict, keep_input=True),
    decode=partial(legacy_records.recorddict_to_fitres, keep_input=False),
)
_EVALUATE = _Kind(
    message_type=MessageType.EVALUATE,
    encode=partial(legacy_records.evaluateins_to_recorddict, keep_input=True),
    decode=legacy_records.recorddict_to_evaluateres,
)

Asked = Sequence[tuple[ClientProxy, Any]]
Answers = tuple[list[tuple[ClientProxy, Any]], list[tuple[ClientProxy, Any] | BaseException]]
"""Results, and failures: a result whose status is not OK, or what went wrong."""
Metrics = dict[str, Any]


class GridClientManager(SimpleClientManager):
    """Flower's client manager, waiting on the Grid's truth instead of a condition of its own."""

    def __init__(self, grid: LineGrid) -> None:
        super().__init__()
        self._grid = grid

    def wait_for(self, num_clients: int, timeout: int = 0) -> bool:
        """Wait for clients up to the join limit; `timeout` is Flower's and not used.

        Raises:
            RunOverError: as for `LineGrid.get_node_ids`.
        """
        while self.num_available() < num_clients:  # start_grid wraps this to register who is there
            self._grid.wait_for_clients(num_clients)
        return True


class GridServer(Server):
    """Flower's classic server (Flower 1.41 Server), its rounds by one call of the Grid; answers come in order asked.

    Raises (in a round):
        RunOverError: as for `LineGrid.send_and_receive`.
    """

    def __init__(self, *, grid: LineGrid, strategy: Strategy) -> None:
        super().__init__(client_manager=GridClientManager(grid), strategy=strategy)
        self._grid = grid

    def fit_round(self, server_round: int, timeout: float | None) -> tuple[Any, Metrics, Answers] | None:
        """Have the strategy's choice of clients train, and aggregate; None where it chose nobody."""
        asked = self.strategy.configure_fit(
            server_round=server_round, parameters=self.parameters, client_manager=self._client_manager
        )
        if not asked:
            return None
        results, failures = self._ask(_TRAIN, asked, server_round, timeout)
        parameters, metrics = self.strategy.aggregate_fit(server_round, results, failures)
        return parameters, metrics, (results, failures)

    def evaluate_round(self, server_round: int, timeout: float | None) -> tuple[float | None, Metrics, Answers] | None:
        """Have the strategy's choice of clients evaluate the global model; None where it chose nobody."""
        asked = self.strategy.configure_evaluate(
            server_round=server_round, parameters=self.parameters, client_manager=self._client_manager
        )
        if not asked:
            return None
        results, failures = self._ask(_EVALUATE, asked, server_round, timeout)
        loss, metrics = self.strategy.aggregate_evaluate(server_round, results, failures)
        return loss, metrics, (results, failures)

    def _ask(self, kind: _Kind, asked: Asked, round_: int, timeout: float | None) -> Answers:
        messages = _messages(kind, asked, round_, timeout)
        replies = {reply.metadata.reply_to_message_id: reply for reply in self._grid.send_and_receive(messages)}
        answers: Answers = ([], [])
        for (client, _), message in zip(asked, messages, strict=True):
            try:
                result = kind.decode(_content_of(replies.pop(message.metadata.message_id, None)))
            except (ValueError, TypeError, LookupError) as failure:  # no answer, an error, or not what was asked for
                answers[1].append(failure)
                continue
            answers[0 if result.status.code is CLASSIC_OK else 1].append((client, result))
        facts = {"round": round_, "kind": kind.message_type, "results": len(answers[0]), "failures": len(answers[1])}
        _log.info("clients have answered", extra=facts)
        return answers


def start_classic(
    *, grid: LineGrid, strategy: Strategy, num_rounds: int, round_timeout_s: float | None = None
) -> History:
    """Run a classic strategy over the line and return Flower's history.

    Raises:
        RunOverError: the run was interrupted, is over a limit, or short of clients.
    """
    config = ServerConfig(num_rounds=num_rounds, round_timeout=round_timeout_s)
    return start_grid(grid=grid, server=GridServer(grid=grid, strategy=strategy), config=config)


def _messages(kind: _Kind, asked: Asked, round_: int, timeout: float | None) -> list[Message]:
    """Return a message a client; those with the same instructions share their content, which is then encoded once."""
    contents: dict[int, RecordDict] = {}
    messages = []
    for client, instructions in asked:
        if id(instructions) not in contents:
            contents[id(instructions)] = kind.encode(instructions)
        content = contents[id(instructions)]
        messages.append(Message(content, client.node_id, kind.message_type, ttl=timeout, group_id=str(round_)))
    return messages


def _content_of(reply: Message | None) -> RecordDict:
    if reply is None:
        raise ValueError("no reply within the strategy's timeout")
    if reply.has_error():
        raise ValueError(reply.error.reason or f"error {reply.error.code} without a reason")
    return reply.content
