"""Follows the first message strategy that is started on the line: its rounds are reported, checkpointed and resumed.

It may be FLServer's own or one that a ServerApp starts, with Flower's `start` or one that overrides it. Within
`watching` the `start` of every strategy class is wrapped; the methods of each round are wrapped on the object.
A strategy counts from 1 each time it is started: the wrapped methods see the run's own round instead.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Result, Strategy

from fedops_mqtt.aggregation.rounds import Rounds
from fedops_mqtt.aggregation.strategy_state import arrays_in, record_of
from fedops_mqtt.line.grid import LineGrid
from fedops_mqtt.store.tensor_file import Arrays

Prepare = Callable[[Strategy, Arrays], None]
"""Called with the strategy and the model that it begins from, before its first round."""
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]

_RESUMABLE = {"initial_arrays", "num_rounds"}
"""What a `start` must take to go on in the middle of a run (Flower 1.41 Strategy.start)."""


class Follower:
    """Follows one strategy; `resumed` is the model of the run's last whole round, where an earlier launch did some."""

    def __init__(
        self, rounds: Rounds, *, resumed: Arrays | None, prepare: Prepare, on_start: Callable[[Strategy], None]
    ) -> None:
        self.strategy: Strategy | None = None
        self.begun_from: Arrays | None = None
        """The model that the strategy was started with."""
        self.num_sent = 0
        """Training messages of this run when the strategy had ended: what is sent later is not its."""
        self._rounds = rounds
        self._resumed = resumed
        self._prepare = prepare
        self._on_start = on_start
        self._grid: LineGrid | None = None
        self._offset = 0
        self._sent_before = 0
        self._is_running = self._has_arrays = self._is_evaluated = False
        self._aggregated: tuple[int, ArrayRecord | None] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wrap `start` of all strategy classes, those that are defined meanwhile too."""
        theirs: dict[type[Strategy], Any] = {}

        def wrap(cls: type[Strategy]) -> None:
            if "start" in vars(cls) and cls not in theirs:
                theirs[cls] = vars(cls)["start"]
                cls.start = self._wrapped(theirs[cls])  # type: ignore[method-assign]

        def on_subclass(cls: type[Strategy], /, **options: Any) -> None:
            super(Strategy, cls).__init_subclass__(**options)
            wrap(cls)

        for cls in _subclasses(Strategy):  # type: ignore[type-abstract]
            wrap(cls)
        Strategy.__init_subclass__ = classmethod(on_subclass)  # type: ignore[assignment]
        try:
            yield
        finally:
            del Strategy.__init_subclass__
            for each, start in theirs.items():
                each.start = start  # type: ignore[method-assign]

    def _wrapped(self, start: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(start)
        def wrapped(strategy: Strategy, *args: Any, **kwargs: Any) -> Any:
            if self.strategy is None and any(isinstance(each, LineGrid) for each in (*args, *kwargs.values())):
                return self._follow(start, strategy, args, kwargs)
            if self._is_running and strategy is self.strategy:  # `super().start(...)` in an overriding one
                return self._call(start, strategy, args, kwargs)
            return start(strategy, *args, **kwargs)

        return wrapped

    def _follow(self, start: Callable[..., Any], strategy: Strategy, args: Any, kwargs: Any) -> Any:
        self.strategy, self._is_running = strategy, True
        self._grid = next(each for each in (*args, *kwargs.values()) if isinstance(each, LineGrid))
        self._on_start(strategy)
        self._wrap(strategy)
        try:
            result = self._call(start, strategy, args, kwargs)
            self._end_round()
        finally:
            self._is_running = False
            self._unwrap(strategy)
            self.num_sent = self._grid.training.num_sent
            self._grid.reply_check = None  # what an app asks for afterwards is its own affair
        if isinstance(result, Result) and self._offset:
            self._shift_result(result)
        return result

    def _call(self, start: Callable[..., Any], strategy: Strategy, args: Any, kwargs: Any) -> Any:
        """Call a `start`, with the model, rounds and evaluation that it should see where it takes them."""
        try:
            bound = inspect.signature(start).bind(strategy, *args, **kwargs)
        except TypeError:
            return start(strategy, *args, **kwargs)  # Python raises what is wrong with the call
        bound.apply_defaults()
        values = bound.arguments
        if not self._has_arrays and values.keys() >= _RESUMABLE:
            self._has_arrays = True
            self._rounds.num_rounds = values["num_rounds"]
            if self._resumed is not None:
                self._offset = self._rounds.done
                values["initial_arrays"], values["num_rounds"] = record_of(self._resumed), self._rounds.num_left
            self.begun_from = arrays_in(values["initial_arrays"])
            self._unwrap(strategy)  # what is prepared may wrap the same methods: beneath
            self._prepare(strategy, self.begun_from)
            self._wrap(strategy)
            values["initial_arrays"] = record_of(self.begun_from)
        theirs = values.get("evaluate_fn")
        # A loop of their own may not know what to do with an evaluation that it was not given.
        if not self._is_evaluated and (theirs is not None or start.__module__ == Strategy.__module__):
            self._is_evaluated = True
            values["evaluate_fn"] = functools.partial(self._evaluate, theirs)
        return start(*bound.args, **bound.kwargs)

    def _wrap(self, strategy: Strategy) -> None:
        wrap_round(strategy, "configure_train", self._shift, before=self._on_configure)
        wrap_round(strategy, "aggregate_train", self._shift, before=self._on_replies, after=self._on_train)
        wrap_round(strategy, "configure_evaluate", self._shift)
        wrap_round(strategy, "aggregate_evaluate", self._shift, before=self._on_evaluations, after=self._on_evaluate)

    def _unwrap(self, strategy: Strategy) -> None:
        for name in ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate"):
            vars(strategy).pop(name, None)

    def _shift(self, round_: int) -> int:
        return round_ + self._offset

    def _on_configure(self, round_: int, *args: Any, **kwargs: Any) -> None:
        """A round begins when enough clients are there, not when the strategy begins to wait for them."""
        self._end_round()
        if round_ <= self._rounds.done:  # a `start` that cannot be resumed begins again
            self._rounds.restart()
        assert self._grid is not None
        self._grid.get_node_ids()
        self._sent_before = self._grid.training.num_sent
        self._rounds.start(round_)

    def _on_replies(self, round_: int, replies: Iterable[Message]) -> None:
        for reply in replies:
            if reply.has_error():
                self._rounds.take_failure(reply.error.reason or "error without a reason")

    def _on_train(self, round_: int, result: tuple[ArrayRecord | None, MetricRecord | None]) -> None:
        self._aggregated = (round_, result[0])
        assert self._grid is not None
        if result[0] is not None or self._grid.training.num_sent > self._sent_before:
            self._rounds.aggregated(result[0] is not None)
        self._rounds.add(round_, result[1], prefix="train")

    def _on_evaluations(self, round_: int, replies: Iterable[Message]) -> None:
        for reply in replies:
            if reply.has_error():
                self._rounds.take_evaluation_failure(reply.error.reason or "error without a reason")

    def _on_evaluate(self, round_: int, result: MetricRecord | None) -> None:
        self._rounds.add(round_, result, prefix="eval")

    def _evaluate(self, theirs: EvaluateFn | None, server_round: int, record: ArrayRecord) -> MetricRecord | None:
        """Flower's `evaluate_fn`: theirs and the server's own, at the end of each round and (0) before the first."""
        if server_round == 0 and self._offset:  # the launch before has evaluated this model
            return None
        round_ = self._shift(server_round)
        metrics: dict[str, Any] = dict(theirs(round_, record) or {}) if theirs is not None else {}
        if round_ == 0 or self._rounds.active_training == round_:
            arrays = arrays_in(record, are_views=True)
            metrics |= self._rounds.evaluate(round_, arrays)
            self._rounds.end(round_, arrays, metrics)
        return MetricRecord(metrics) if metrics else None

    def _end_round(self) -> None:
        """End the current round, where no `evaluate_fn` has: a loop of its own need not call one."""
        round_ = self._rounds.active_training
        if round_ is None or self._aggregated is None or self._aggregated[0] != round_:
            return
        record = self._aggregated[1]
        kept = self._rounds.arrays or self.begun_from or {}
        arrays = arrays_in(record, are_views=True) if record is not None else kept
        self._rounds.end(round_, arrays, self._rounds.evaluate(round_, arrays))

    def _shift_result(self, result: Result) -> None:
        """Give a resumed strategy's result the run's round numbers."""
        if not result.arrays and self._resumed is not None:  # all rounds were done by the launch before
            result.arrays = record_of(self._resumed)
        for found in (
            result.train_metrics_clientapp,
            result.evaluate_metrics_clientapp,
            result.evaluate_metrics_serverapp,
        ):
            shifted = {round_ + self._offset: metrics for round_, metrics in found.items()}
            found.clear()
            found.update(shifted)


def wrap_round(
    strategy: Any,
    name: str,
    shift: Callable[[int], int],
    *,
    before: Callable[..., None] | None = None,
    after: Callable[[int, Any], None] | None = None,
) -> None:
    """Shift the round that a method is called with (its first argument, or `server_round`), and listen in.

    `before` gets all arguments, `after` the round and the result.
    """
    original = getattr(strategy, name)

    @functools.wraps(original)
    def shifted(*args: Any, **kwargs: Any) -> Any:
        number = kwargs.pop("server_round", None)
        if number is None:
            number, *args = args  # type: ignore[assignment]
        round_ = shift(number)
        if before is not None:
            before(round_, *args, **kwargs)
        result = original(round_, *args, **kwargs)
        if after is not None:
            after(round_, result)
        return result

    vars(strategy)[name] = shifted


def _subclasses(cls: type[Strategy]) -> Iterator[type[Strategy]]:
    yield cls
    for each in cls.__subclasses__():
        yield from _subclasses(each)
