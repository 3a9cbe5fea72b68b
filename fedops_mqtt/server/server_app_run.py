"""A ServerApp in place of a strategy: the first strategy that it starts is followed as one of FLServer's own would be.

So its rounds are told, checkpointed and resumed, though the app knows nothing of it. While the app runs, Flower's
public `Strategy.start` is ours; strategies that the app starts afterwards, and loops of its own, run as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy

from fedops_mqtt.line.grid import LineGrid
from fedops_mqtt.server.app_strategy import Config, EvaluateFn, arrays_in, follow, record_of, restore_state, unfollow
from fedops_mqtt.server.checkpoint import Checkpoint
from fedops_mqtt.server.rounds import Rounds
from fedops_mqtt.server.tensor_file import Arrays


def run_server_app(
    app: ServerApp,
    *,
    grid: LineGrid,
    rounds: Rounds,
    checkpoint: Checkpoint | None,
    run_config: Config,
    on_strategy: Callable[[Strategy], None],
) -> Arrays | None:
    """Run a ServerApp; return the model that it left as an ArrayRecord in `context.state`, else that of its strategy.

    `on_strategy` hears of the strategy that is followed before it starts.

    Raises:
        RunOverError: the line ended the run.
    """
    context = Context(
        run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    with _following(rounds, checkpoint, on_strategy):
        app(grid, context)
    records = list(context.state.array_records.values())
    return arrays_in(records[-1]) if records and records[-1] else rounds.arrays


@contextmanager
def _following(
    rounds: Rounds, checkpoint: Checkpoint | None, on_strategy: Callable[[Strategy], None]
) -> Iterator[None]:
    flowers_own = Strategy.start
    is_first = True

    def start(
        strategy: Strategy, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, *args: Any, **kwargs: Any
    ) -> Result:
        nonlocal is_first
        if not (is_first and isinstance(grid, LineGrid)):
            return flowers_own(strategy, grid, initial_arrays, num_rounds, *args, **kwargs)
        is_first = False
        on_strategy(strategy)
        if checkpoint is not None:
            restore_state(strategy, checkpoint.strategy)
            initial_arrays = record_of(checkpoint.arrays)
        rounds.num_rounds = num_rounds
        return _start(flowers_own, strategy, grid, rounds, initial_arrays, *args, **kwargs)

    Strategy.start = start  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Strategy.start = flowers_own  # type: ignore[method-assign]


def _start(
    flowers_own: Callable[..., Result],
    strategy: Strategy,
    grid: LineGrid,
    rounds: Rounds,
    initial: ArrayRecord,
    timeout: float = 3600,
    train_config: ConfigRecord | None = None,
    evaluate_config: ConfigRecord | None = None,
    evaluate_fn: EvaluateFn | None = None,
) -> Result:
    """Do the rounds that are left (parameters as Flower 1.41 has them) and give the result the run's round numbers."""
    offset = rounds.done
    evaluate = follow(strategy, grid=grid, rounds=rounds, theirs=evaluate_fn)
    try:
        result = flowers_own(
            strategy, grid, initial, rounds.num_left, timeout, train_config, evaluate_config, evaluate_fn=evaluate
        )
    finally:
        unfollow(strategy)
        grid.reply_check = None  # what the app asks for afterwards is its own affair
    if not result.arrays:  # all rounds were done by the launch before
        result.arrays = initial
    for found in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp, result.evaluate_metrics_serverapp):
        shifted = {round_ + offset: metrics for round_, metrics in found.items()}
        found.clear()
        found.update(shifted)
    return result
