"""The training of one run: a strategy's or a ServerApp's rounds, from where the run stands to what came of them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord
from flwr.server.strategy import Strategy as ClassicStrategy
from flwr.serverapp import ServerApp

from fedops_mqtt.aggregation.checkpoint import Checkpoint, StartingPoint
from fedops_mqtt.aggregation.follow import Follower
from fedops_mqtt.aggregation.model_arrays import are_equal
from fedops_mqtt.aggregation.rounds import Rounds
from fedops_mqtt.aggregation.run_settings import RunPlan, check_of
from fedops_mqtt.aggregation.strategy import Config, count_on, run_classic, run_messages, run_server_app
from fedops_mqtt.aggregation.strategy_state import AnyStrategy, StrategyState, arrays_in, begin_from
from fedops_mqtt.line.grid import LineGrid, digest_of
from fedops_mqtt.protocol import RunOutcome
from fedops_mqtt.runtime.key_values import NUM_ROUNDS_KEY, module_of, project_config
from fedops_mqtt.runtime.settings import ServerSettings
from fedops_mqtt.store.tensor_file import Arrays

_log = logging.getLogger(__name__)


class RunTraining:
    """Runs foreign code, and reports afterwards what it did; `initial` is the program's own model."""

    def __init__(
        self,
        *,
        plan: RunPlan,
        starting_point: StartingPoint,
        rounds: Rounds,
        strategy: AnyStrategy | None,
        server_app: ServerApp | None,
        initial: Arrays | None,
        train_config: Config,
        app_config: Config | None,
        settings: ServerSettings,
    ) -> None:
        self.rounds = rounds
        self.last = starting_point.checkpoint
        """The run after its last whole round; None before the first."""
        self._plan = plan
        self._starting_point = starting_point
        self._strategy = strategy
        self._server_app = server_app
        self._initial = initial
        self._train_config = train_config
        self._app_config = app_config
        self._settings = settings
        self._grid: LineGrid | None = None
        self._state: StrategyState | None = None
        self._rounds_before = 0
        self._undo_count: Callable[[], None] = lambda: None
        self._begun_from: Arrays | None = None
        self._left: ArrayRecord | None = None
        resumed = starting_point.checkpoint.arrays if starting_point.checkpoint is not None else None
        self._follower = Follower(rounds, resumed=resumed, prepare=self._prepare, on_start=self._check_replies)

    @property
    def is_followed(self) -> bool:
        """Return whether all training is that of one known strategy; a ServerApp may start none, or go on after it."""
        if self._server_app is None:
            return True
        num_sent = self._grid.training.num_sent if self._grid is not None else 0
        return self._follower.strategy is not None and self._follower.num_sent == num_sent

    def run(self, grid: LineGrid) -> None:
        """Do the rounds.

        Raises:
            RunEndedError: the line ended the run.
            UnfitStrategyError: the strategy cannot begin from this run's model.
            Exception: whatever the strategy or the app raises.
        """
        self._grid = grid
        try:
            self._run(grid)
        finally:
            self._undo_count()
            if not self.is_followed:
                self.rounds.done = max(self.rounds.done, grid.training.round)

    def checkpoint(self, round_: int, arrays: Arrays, metrics: Mapping[str, float]) -> Checkpoint:
        """Return the run after a whole round."""
        state = self._state
        self.last = Checkpoint(
            run_id=self._plan.run_id,
            launch=self._plan.launch,
            round=round_,
            gl_model=self._starting_point.gl_model,
            arrays=arrays,
            strategy=state.capture() if state is not None else {},
            strategy_class=state.class_names if state is not None else "",
            strategy_rounds=self._rounds_before + round_,
            metrics=dict(metrics),
        )
        return self.last

    def model(self) -> Arrays | None:
        """Return the model to store; None where there is none, or only that which the run began with."""
        if self._left is not None and self._is_trained(self._left):
            arrays: Arrays | None = arrays_in(self._left)
        else:
            arrays = self.rounds.arrays
        is_resumed = self._starting_point.checkpoint is not None
        before = [self._starting_point.first, None if is_resumed else self._begun_from]
        return None if arrays is None or any(each and are_equal(arrays, each) for each in before) else arrays

    def decision(self) -> tuple[RunOutcome, str]:
        """Return how the run ended, once `run` has returned."""
        assert self._grid is not None
        rounds, seen = self.rounds, self._grid.training
        failures = "; ".join(rounds.failures or seen.failures)
        if rounds.num_left == 0 and not seen.num_sent and self._starting_point.done:
            return RunOutcome.COMPLETED, "all rounds were done by an earlier launch"
        is_unchanged = self.model() is None
        if not rounds.num_aggregated and seen.num_sent:
            if self.is_followed and is_unchanged:
                return RunOutcome.FAILED, f"no round gave a model: {failures or 'no client answered'}"
            if not seen.num_answered:
                return RunOutcome.FAILED, f"no client's training succeeded: {failures or 'no client answered'}"
            if self._left is not None and is_unchanged:
                report = "the ServerApp left the model as it was: nothing was trained"
                return RunOutcome.FAILED, f"{report} ({failures})" if failures else report
        return RunOutcome.COMPLETED, "; ".join(self._remarks(is_unchanged, failures))

    def _remarks(self, is_unchanged: bool, failures: str) -> list[str]:
        """Return what a completed run reports, the main thing first."""
        assert self._grid is not None
        rounds = self.rounds
        if not self.is_followed:
            report = ["the ServerApp ended"]
        elif rounds.done >= rounds.num_rounds:
            report = ["all rounds done"]
        else:
            report = [f"ended after {rounds.done} of {rounds.num_rounds} rounds"]
        if not self._grid.training.num_sent:
            report.append("no client was asked to train")
        elif rounds.num_fruitless:
            report.append(f"{rounds.num_fruitless} rounds gave no new model{f': {failures}' if failures else ''}")
        if rounds.evaluation_failures:
            report.append(f"evaluations failed: {'; '.join(rounds.evaluation_failures)}")
        if self._grid.training.num_sent and is_unchanged:
            is_missing = not self.is_followed and self._left is None
            report.append(
                "it left no model in context.state: none is stored"
                if is_missing
                else "the model is as it was: no new version"
            )
        return report

    def _run(self, grid: LineGrid) -> None:
        if self._server_app is not None:
            grid.training.wants_model = True
            rounds = {NUM_ROUNDS_KEY: self._plan.num_rounds}
            project = project_config(module_of(self._server_app)) if self._app_config is None else self._app_config
            over = rounds if self._plan.is_num_rounds_set else {}
            config: dict[str, Any] = {**rounds, **project, **over, **self._train_config, **self._plan.run_config}
            self._left = run_server_app(self._server_app, grid=grid, follower=self._follower, run_config=config)
        elif isinstance(self._strategy, ClassicStrategy):
            strategy = self._strategy
            self._check_replies(strategy)
            run_classic(
                strategy,
                grid=grid,
                rounds=self.rounds,
                initial=self._starting_point.arrays,
                prepare=lambda arrays, own: self._prepare(strategy, arrays, own),
                round_limit_s=self._settings.round_limit_s,
            )
        elif self._strategy is not None:
            run_messages(
                self._strategy,
                grid=grid,
                follower=self._follower,
                initial=self._starting_point.arrays,
                num_rounds=self._plan.num_rounds,
                round_limit_s=self._settings.round_limit_s,
                train_config=self._train_config,
            )

    def _prepare(self, strategy: AnyStrategy, arrays: Arrays, own: Sequence[Arrays] = ()) -> None:
        """Make a strategy begin where the run stands: from this model, with the state that belongs to it."""
        starting_point = self._starting_point
        self._begun_from = arrays
        self._state = StrategyState(strategy)
        is_stored = starting_point.last_gl_model > 0 or starting_point.checkpoint is not None
        instead_of = [*own, self._initial] if self._initial is not None else own
        begin_from(strategy, arrays, instead_of=instead_of, is_stored=is_stored)
        kept = starting_point.checkpoint or starting_point.previous
        if kept is None or not kept.strategy or not are_equal(arrays, kept.arrays):
            return
        if kept.strategy_class != self._state.class_names:
            facts = {"kept": kept.strategy_class, "strategy": self._state.class_names}
            _log.warning("strategy begins without the state of another class", extra=facts)
            return
        self._state.restore(kept.strategy)
        self._rounds_before = kept.strategy_rounds - (kept.round if kept is starting_point.checkpoint else 0)
        self._undo_count = count_on(strategy, self._rounds_before)

    def _check_replies(self, strategy: AnyStrategy) -> None:
        """This strategy is what runs: its replies are checked as it wants them."""
        assert self._grid is not None
        self._grid.reply_check = check = check_of(strategy, self._settings)
        self.rounds.accepts_nonfinite = check.nonfinite

    def _is_trained(self, left: ArrayRecord) -> bool:
        """Return whether a model that an app left is another than that which it sent out."""
        assert self._grid is not None
        seen = self._grid.training
        return seen.num_answered > 0 and (
            seen.has_arrays if seen.first_model is None else digest_of(left) != seen.first_model
        )
