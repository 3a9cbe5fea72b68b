"""Classic strategies (`flwr.server.strategy`) on the line: `start_grid` with a client manager and a server of our own.

Flower's own manager waits a day for clients and looks for new ones every five seconds; this one never waits for ever.
Flower's own server asks each client in a thread of its own; this one asks all of them with one call of the Grid.
"""

import logging
import time
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
            RunEndedError: as for `LineGrid.get_node_ids`.
        """
        while self.num_available() < num_clients:  # start_grid wraps this to register who is there
            self._grid.wait_for_clients(num_clients)
        return True


class GridServer(Server):
    """Flower's classic server (Flower 1.41 Server), its rounds by one call of the Grid; answers come in order asked.

    `rounds_done` rounds were done before: strategy, clients and history see the numbers that follow.

    Raises (in a round):
        RunEndedError: as for `LineGrid.send_and_receive`.
    """

    def __init__(self, *, grid: LineGrid, strategy: Strategy, rounds_done: int = 0) -> None:
        super().__init__(client_manager=GridClientManager(grid), strategy=strategy)
        self._grid = grid
        self._rounds_done = rounds_done

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        """Do `num_rounds` rounds more (Flower 1.41 Server.fit); return their history and how many seconds it took."""
        history, started = History(), time.monotonic()
        self.parameters = self._get_initial_parameters(server_round=0, timeout=timeout)
        if not self._rounds_done:
            self._add_centralized(history, 0)
        for round_ in range(self._rounds_done + 1, self._rounds_done + num_rounds + 1):
            if (fitted := self.fit_round(round_, timeout)) is not None:
                self.parameters = fitted[0] or self.parameters
                history.add_metrics_distributed_fit(server_round=round_, metrics=fitted[1])
            self._add_centralized(history, round_)
            if (evaluated := self.evaluate_round(round_, timeout)) is not None and evaluated[0] is not None:
                history.add_loss_distributed(server_round=round_, loss=evaluated[0])
                history.add_metrics_distributed(server_round=round_, metrics=evaluated[1])
        return history, time.monotonic() - started

    def evaluate_model(self, server_round: int) -> tuple[float, Metrics] | None:
        """Evaluate the global model on the server (0: before the first round); None where there is no evaluation."""
        return self.strategy.evaluate(server_round, self.parameters)

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

    def take_failures(self, message_type: str, failures: list[Any]) -> None:
        """Called with each round's failures, before the strategy gets them."""

    def _add_centralized(self, history: History, round_: int) -> None:
        if (found := self.evaluate_model(round_)) is not None:
            history.add_loss_centralized(server_round=round_, loss=found[0])
            history.add_metrics_centralized(server_round=round_, metrics=found[1])

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
        self.take_failures(kind.message_type, answers[1])
        return answers


def start_classic(
    *,
    grid: LineGrid,
    strategy: Strategy,
    num_rounds: int,
    round_timeout_s: float | None = None,
    server: GridServer | None = None,
) -> History:
    """Run a classic strategy over the line and return Flower's history; `server` replaces the plain GridServer.

    Raises:
        RunEndedError: the run was interrupted, exceeds a limit, or has too few clients.
    """
    config = ServerConfig(num_rounds=num_rounds, round_timeout=round_timeout_s)
    return start_grid(grid=grid, server=server or GridServer(grid=grid, strategy=strategy), config=config)


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
