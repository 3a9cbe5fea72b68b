"""Flower strategies of both families, run over the line with the run's own round numbers."""

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, MessageType, RecordDict
from flwr.common import Parameters
from flwr.server.strategy import Strategy as ClassicStrategy
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fedops_mqtt.aggregation.follow import Follower, wrap_round
from fedops_mqtt.aggregation.rounds import Rounds
from fedops_mqtt.aggregation.strategy_state import AnyStrategy, first_models, parts, record_of, to_arrays, to_parameters
from fedops_mqtt.line.classic import Answers, GridServer, start_classic
from fedops_mqtt.line.grid import LineGrid
from fedops_mqtt.store.tensor_file import Arrays

Config = Mapping[str, bool | int | float | str]
Prepare = Callable[[Arrays, list[Arrays]], None]
_AGGREGATE = ("aggregate_train", "aggregate_fit")


def make_fedavg(min_clients: int) -> Strategy:
    """Return the strategy of a server that was given none: FedAvg over everybody present, `min_clients` at least."""
    return FedAvg(min_train_nodes=min_clients, min_evaluate_nodes=min_clients, min_available_nodes=min_clients)


def own_minimum(strategy: AnyStrategy | None) -> int:
    """Return how many clients a strategy itself wants before it begins."""
    for name in ("min_available_nodes", "min_available_clients"):
        minimum = getattr(strategy, name, None)
        if isinstance(minimum, int):
            return max(1, minimum)
    return 1


def run_messages(
    strategy: Strategy,
    *,
    grid: LineGrid,
    follower: Follower,
    initial: Arrays | None,
    num_rounds: int,
    round_limit_s: float,
    train_config: Config,
) -> None:
    """Run a message strategy's rounds; what they give is in the follower's `rounds`.

    Raises:
        RunEndedError: the line ended the run.
        ValueError: there is no model to begin with.
    """
    if initial is None:
        raise ValueError(f"{type(strategy).__name__} needs a model to begin with: give FLServer one")
    with follower.watching():
        strategy.start(
            grid=grid,
            initial_arrays=record_of(initial),
            num_rounds=num_rounds,
            timeout=round_limit_s,
            train_config=ConfigRecord(dict(train_config)),
            evaluate_config=ConfigRecord(dict(train_config)),
        )


def run_classic(
    strategy: ClassicStrategy,
    *,
    grid: LineGrid,
    rounds: Rounds,
    initial: Arrays | None,
    prepare: Prepare,
    round_limit_s: float,
) -> None:
    """Run the rounds that are left of a classic strategy; what they give is in `rounds`.

    `prepare` is called once the strategy has initialized its parameters, with the model to begin with and those that
    the strategy would have begun with; where `initial` is None, the model is the strategy's own, or a client's.

    Raises:
        RunEndedError: the line ended the run.
    """
    server = _RoundsServer(grid=grid, strategy=strategy, rounds=rounds, initial=initial, prepare=prepare)
    try:
        start_classic(
            grid=grid, strategy=strategy, num_rounds=rounds.num_left, round_timeout_s=round_limit_s, server=server
        )
    finally:
        vars(strategy).pop("evaluate", None)


def count_on(strategy: AnyStrategy, rounds_before: int) -> Callable[[], None]:
    """Let Flower's own aggregation count on from the rounds that the strategy's state has seen; returns the undoing.

    FedAdam corrects its moments by the round, classic FedAvgM forgets its momentum in round 1. Aggregation of one's own
    sees the run's round, and so do clients and configurations.
    """
    wrapped: list[tuple[AnyStrategy, str]] = []
    for _, owner in parts(strategy):
        is_wrapper = len(parts(owner)) > 1
        for name in _AGGREGATE:
            method = getattr(owner, name, None)
            if rounds_before and not is_wrapper and method is not None and method.__module__.startswith("flwr."):
                wrap_round(owner, name, lambda round_: round_ + rounds_before)
                wrapped.append((owner, name))

    def undo() -> None:
        for owner, name in wrapped:
            vars(owner).pop(name, None)

    return undo


class _RoundsServer(GridServer):
    """Reports a classic strategy's rounds to `rounds`, and begins with the model that it should begin with."""

    def __init__(
        self,
        *,
        grid: LineGrid,
        strategy: ClassicStrategy,
        rounds: Rounds,
        initial: Arrays | None,
        prepare: Prepare,
    ) -> None:
        super().__init__(grid=grid, strategy=strategy, rounds_done=rounds.done)
        self._rounds = rounds
        self._initial = initial
        self._prepare = prepare
        self._own_evaluate = strategy.evaluate
        vars(strategy)["evaluate"] = self._evaluate  # QFedAvg asks for it itself

    def evaluate_model(self, server_round: int) -> tuple[float, dict[str, Any]] | None:
        """Evaluate the global model as the strategy and as the server do, and end the round with that."""
        found = self._evaluate(server_round, self.parameters)
        self._rounds.end(server_round, self._arrays(self.parameters), found[1] if found else None)
        return found

    def fit_round(self, server_round: int, timeout: float | None) -> tuple[Any, dict[str, Any], Answers] | None:
        """Have clients train; a round begins when enough clients are there, not when the strategy waits for them."""
        self._grid.get_node_ids()
        self._rounds.start(server_round)
        fitted = super().fit_round(server_round, timeout)
        if fitted is not None:
            self._rounds.aggregated(fitted[0] is not None)
            self._rounds.add(server_round, fitted[1], prefix="train")
        return fitted

    def evaluate_round(
        self, server_round: int, timeout: float | None
    ) -> tuple[float | None, dict[str, Any], Answers] | None:
        """Have clients evaluate."""
        evaluated = super().evaluate_round(server_round, timeout)
        if evaluated is not None:
            self._rounds.add(server_round, {"loss": evaluated[0], **evaluated[1]}, prefix="eval")
        return evaluated

    def take_failures(self, message_type: str, failures: list[Any]) -> None:
        """Keep what clients answered in the place of results."""
        take = self._rounds.take_failure if message_type == MessageType.TRAIN else self._rounds.take_evaluation_failure
        for failure in failures:
            take(str(failure if isinstance(failure, BaseException) else failure[1].status.message))

    def _get_initial_parameters(self, server_round: int, timeout: float | None) -> Parameters:
        if self._initial is None:
            parameters = super()._get_initial_parameters(server_round, timeout)
            self._prepare(to_arrays(parameters), [])
            return parameters
        own = first_models(self.strategy)
        made = self.strategy.initialize_parameters(self._client_manager)  # one of their own may do more than make them
        self._prepare(self._initial, own if made is None else [*own, to_arrays(made)])
        return to_parameters(self._initial, self.strategy)

    def _evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, dict[str, Any]] | None:
        server_round = (
            self._rounds.active_training or server_round
        )  # a strategy that asks itself may count on: `count_on`
        theirs = self._own_evaluate(server_round, parameters)
        metrics: dict[str, Any] = dict(self._rounds.evaluate(server_round, self._arrays(parameters)))
        if theirs is not None:
            metrics = {"loss": theirs[0], **theirs[1], **metrics}
        return (metrics.get("loss", 0.0), metrics) if metrics else None

    def _arrays(self, parameters: Parameters) -> Arrays:
        return to_arrays(parameters, list(self._initial or ()), are_views=True)


def run_server_app(app: ServerApp, *, grid: Grid, follower: Follower, run_config: Config) -> ArrayRecord | None:
    """Run a ServerApp; return the model that it left as an ArrayRecord in `context.state`, None where it left none.

    Raises:
        RunEndedError: the line ended the run.
    """
    context = Context(
        run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    with follower.watching():
        app(grid, context)
    records = list(context.state.array_records.values())
    return records[-1] if records and records[-1] else None
