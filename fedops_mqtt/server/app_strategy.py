"""Flower strategies of both families, run over the line with the run's own round numbers.

A strategy counts from 1 each time it is started. So the methods that Flower calls once a round are wrapped on the
strategy object itself (its class stays as it is, and a `start` of its own keeps working): they see the real number.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import Strategy as ClassicStrategy
from flwr.serverapp.strategy import FedAvg, Strategy

from fedops_mqtt.line.classic import start_classic
from fedops_mqtt.line.grid import LineGrid
from fedops_mqtt.server.checkpoint import StateValue
from fedops_mqtt.server.rounds import Rounds
from fedops_mqtt.server.tensor_file import Arrays

_log = logging.getLogger(__name__)

AnyStrategy = Strategy | ClassicStrategy
Config = Mapping[str, bool | int | float | str]
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]

_KEPT_NUMBERS = ("clipping_norm",)
"""Numbers that a strategy changes as it goes (adaptive clipping); other numbers are its configuration."""
_RECORD, _BYTES = ":record", ":bytes"
"""Endings of names whose values were an ArrayRecord or bytes (Flower's XGBoost strategies)."""


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


def run_strategy(
    strategy: AnyStrategy,
    *,
    grid: LineGrid,
    rounds: Rounds,
    initial: Arrays | None,
    round_limit_s: float,
    train_config: Config,
) -> None:
    """Run the rounds that are left; what they give is in `rounds`.

    Raises:
        RunOverError: the line ended the run.
        ValueError: a message strategy has no model to begin with.
    """
    if isinstance(strategy, ClassicStrategy):
        _run_classic(strategy, grid=grid, rounds=rounds, initial=initial, round_limit_s=round_limit_s)
        return
    if initial is None:
        raise ValueError(f"{type(strategy).__name__} needs a model to begin with: give FLServer one")
    _run_messages(strategy, grid, rounds, initial, round_limit_s, train_config)


def record_of(arrays: Arrays) -> ArrayRecord:
    """Return the arrays as Flower's messages carry them."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def arrays_in(record: ArrayRecord) -> Arrays:
    """Return copies of a record's arrays."""
    return {name: array.numpy() for name, array in record.items()}


def capture_state(strategy: object) -> dict[str, StateValue]:
    """Return what a strategy remembers from round to round.

    A strategy with `save_state() -> dict` (arrays, lists and dicts of arrays, numbers) and `load_state(dict)` says it
    itself. Of the others every attribute that holds arrays is taken (momenta of FedAdam, FedYogi, FedAvgM, and so on).
    """
    if callable(save := getattr(strategy, "save_state", None)):
        return dict(save())
    state: dict[str, StateValue] = {}
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy | ClassicStrategy):  # a wrapper, such as differential privacy
            state |= {f"{name}.{inner}": kept for inner, kept in capture_state(value).items()}
        elif (kept := _keep(name, value)) is not None:
            state[kept[0]] = kept[1]
    return state


def restore_state(strategy: object, state: Mapping[str, StateValue]) -> None:
    """Give a strategy of the same kind back what `capture_state` took."""
    if callable(load := getattr(strategy, "load_state", None)):
        load(dict(state))
        return
    for key, value in state.items():
        owner, (*path, name) = strategy, key.split(".")
        for part in path:
            owner = getattr(owner, part)
        if name.endswith(_RECORD) and isinstance(value, dict):
            setattr(owner, name.removesuffix(_RECORD), record_of(value))
        elif name.endswith(_BYTES) and isinstance(value, np.ndarray):
            setattr(owner, name.removesuffix(_BYTES), value.tobytes())
        else:
            setattr(owner, name, value)


def follow(
    strategy: Strategy, *, grid: LineGrid, rounds: Rounds, theirs: EvaluateFn | None = None
) -> Callable[[int, ArrayRecord], MetricRecord | None]:
    """Listen to a message strategy's rounds; return the `evaluate_fn` to start it with, which asks `theirs` too."""
    offset = rounds.done

    def evaluate(server_round: int, record: ArrayRecord) -> MetricRecord | None:
        if server_round == 0 and offset:  # the launch before has evaluated this model
            return None
        round_, arrays = server_round + offset, arrays_in(record)
        metrics: dict[str, Any] = dict(theirs(round_, record) or {}) if theirs is not None else {}
        metrics |= rounds.evaluate(round_, arrays)
        rounds.end(round_, arrays, metrics)
        return MetricRecord(metrics) if metrics else None

    def on_replies(round_: int, replies: Iterable[Message]) -> None:
        for reply in replies:
            if reply.has_error():
                rounds.take_failure(reply.error.reason or "error without a reason")

    def on_train(round_: int, result: tuple[ArrayRecord | None, MetricRecord | None]) -> None:
        rounds.aggregated(result[0] is not None)
        rounds.add(round_, result[1], prefix="train")

    _wrap(strategy, "configure_train", offset, before=lambda round_, *_, **__: _begin_round(grid, rounds, round_))
    _wrap(strategy, "aggregate_train", offset, before=on_replies, after=on_train)
    _wrap(strategy, "configure_evaluate", offset)
    _wrap(
        strategy, "aggregate_evaluate", offset, after=lambda round_, result: rounds.add(round_, result, prefix="eval")
    )
    return evaluate


def unfollow(strategy: Strategy) -> None:
    """Listen no longer: its methods are those of its class again."""
    for name in ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate"):
        vars(strategy).pop(name, None)


def _run_messages(
    strategy: Strategy, grid: LineGrid, rounds: Rounds, initial: Arrays, round_limit_s: float, train_config: Config
) -> None:
    strategy.start(
        grid=grid,
        initial_arrays=record_of(initial),
        num_rounds=rounds.num_left,
        timeout=round_limit_s,
        train_config=ConfigRecord(dict(train_config)),
        evaluate_config=ConfigRecord(dict(train_config)),
        evaluate_fn=follow(strategy, grid=grid, rounds=rounds),
    )


def _run_classic(
    strategy: ClassicStrategy, *, grid: LineGrid, rounds: Rounds, initial: Arrays | None, round_limit_s: float
) -> None:
    offset, names = rounds.done, list(initial or ())
    own_evaluate = strategy.evaluate

    def to_arrays(parameters: Any) -> Arrays:
        values = parameters_to_ndarrays(parameters)
        known = names if len(names) == len(values) else [str(at) for at in range(len(values))]
        return dict(zip(known, values, strict=True))

    def evaluate(server_round: int, parameters: Any) -> tuple[float, dict[str, Any]] | None:
        if server_round == 0 and offset:
            return None
        round_, arrays = server_round + offset, to_arrays(parameters)
        theirs = own_evaluate(round_, parameters)
        metrics: dict[str, Any] = dict(rounds.evaluate(round_, arrays))
        if theirs is not None:
            metrics = {"loss": theirs[0], **theirs[1], **metrics}
        rounds.end(round_, arrays, metrics)
        return (metrics.get("loss", 0.0), dict(metrics)) if metrics else None

    def on_results(round_: int, results: Any, failures: Iterable[Any]) -> None:
        for failure in failures:
            rounds.take_failure(str(failure if isinstance(failure, BaseException) else failure[1].status.message))

    def on_fit(round_: int, result: tuple[Any, Mapping[str, Any]]) -> None:
        rounds.aggregated(result[0] is not None)
        rounds.add(round_, result[1], prefix="train")

    def on_evaluate(round_: int, result: tuple[float | None, Mapping[str, Any]]) -> None:
        rounds.add(round_, {"loss": result[0], **result[1]}, prefix="eval")

    _wrap(strategy, "configure_fit", offset, before=lambda round_, *_, **__: _begin_round(grid, rounds, round_))
    _wrap(strategy, "aggregate_fit", offset, before=on_results, after=on_fit)
    _wrap(strategy, "configure_evaluate", offset)
    _wrap(strategy, "aggregate_evaluate", offset, after=on_evaluate)
    vars(strategy)["evaluate"] = evaluate
    if initial is not None:
        _begin_with(strategy, list(initial.values()), is_new=not offset)
    start_classic(grid=grid, strategy=strategy, num_rounds=rounds.num_left, round_timeout_s=round_limit_s)


def _begin_round(grid: LineGrid, rounds: Rounds, round_: int) -> None:
    """A round begins when enough clients are there, not when the strategy begins to wait for them."""
    grid.get_node_ids()
    rounds.start(round_)


def _begin_with(strategy: ClassicStrategy, weights: list[np.ndarray[Any, Any]], *, is_new: bool) -> None:
    """Make a classic strategy begin with these weights, whatever it was built with."""
    parameters = ndarrays_to_parameters(weights)
    vars(strategy)["initialize_parameters"] = lambda client_manager: parameters
    if is_new and hasattr(strategy, "current_weights"):  # FedOpt keeps a copy of what it was built with
        strategy.current_weights = weights


def _wrap(
    strategy: AnyStrategy,
    name: str,
    offset: int,
    *,
    before: Callable[..., None] | None = None,
    after: Callable[[int, Any], None] | None = None,
) -> None:
    """Shift the round that a method is called with (its first argument, or `server_round`), and listen in.

    `before` gets all arguments, `after` the round and the result.
    """
    original = getattr(strategy, name)

    def shifted(*args: Any, **kwargs: Any) -> Any:
        number = kwargs.pop("server_round", None)
        if number is None:
            number, *args = args  # type: ignore[assignment]
        round_ = number + offset
        if before is not None:
            before(round_, *args, **kwargs)
        result = original(round_, *args, **kwargs)
        if after is not None:
            after(round_, result)
        return result

    vars(strategy)[name] = shifted


def _keep(name: str, value: object) -> tuple[str, StateValue] | None:
    """Return the name and form that an attribute is kept under; None for what is no state."""
    if isinstance(value, ArrayRecord):
        return name + _RECORD, arrays_in(value)
    if isinstance(value, bytes):
        return name + _BYTES, np.frombuffer(value, np.uint8)
    if isinstance(value, np.ndarray):
        return name, value
    if isinstance(value, list) and value and all(isinstance(item, np.ndarray) for item in value):
        return name, value
    if isinstance(value, dict) and value and all(isinstance(item, np.ndarray) for item in value.values()):
        return name, value
    if name in _KEPT_NUMBERS and isinstance(value, int | float):
        return name, value
    return None
