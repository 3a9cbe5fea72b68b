from typing import Any

import numpy as np

from fedops_mqtt.aggregation.rounds import RoundHooks, RoundReport, Rounds

MODEL = {"w": np.ones(1)}


class RecordedHooks:
    def __init__(self) -> None:
        self.started: list[int] = []
        self.reports: list[RoundReport] = []
        self.saved: list[int] = []

    def hooks(self, evaluate: Any = None) -> RoundHooks:
        return RoundHooks(
            evaluate=evaluate,
            on_start=self.started.append,
            on_report=self.reports.append,
            save=lambda round_, arrays, metrics: self.saved.append(round_),
        )


def test_a_round_is_started_once_saved_and_reported_with_all_its_metrics() -> None:
    recorded = RecordedHooks()
    rounds = Rounds(num_rounds=2, hooks=recorded.hooks(lambda round_, arrays: {"accuracy": np.float32(0.5)}))
    rounds.end(0, MODEL, rounds.evaluate(0, MODEL))
    for _ in range(2):
        rounds.start(1)
    rounds.aggregated(True)
    rounds.add(1, {"loss": 2, "train_steps": 3, "names": ["a"], "note": "x"}, prefix="train")
    rounds.end(1, MODEL, rounds.evaluate(1, MODEL))
    assert (recorded.started, recorded.saved, rounds.done, rounds.num_left) == ([1], [1], 1, 1)
    assert [(report.round, dict(report.metrics)) for report in recorded.reports] == [
        (0, {"accuracy": 0.5}),
        (1, {"train_loss": 2.0, "train_steps": 3.0, "accuracy": 0.5}),
    ]
    assert recorded.reports[0].duration_s is None
    assert recorded.reports[1].duration_s is not None


def test_an_evaluation_that_works_in_place_does_not_change_what_is_stored() -> None:
    def spoil(round_: int, arrays: Any) -> dict[str, float]:
        arrays["w"] *= 0
        return {}

    stored = np.ones(1)
    stored.flags.writeable = False  # as a message's arrays are
    Rounds(num_rounds=1, hooks=RecordedHooks().hooks(spoil)).evaluate(1, {"w": stored})
    assert stored == 1


def test_metrics_that_come_after_the_rounds_end_are_reported_at_once() -> None:
    recorded = RecordedHooks()
    rounds = Rounds(num_rounds=1, hooks=recorded.hooks())
    rounds.start(1)
    rounds.aggregated(True)
    rounds.end(1, MODEL, {"loss": 1.0})
    rounds.add(1, {"loss": 3.0}, prefix="eval")
    assert dict(recorded.reports[-1].metrics) == {"loss": 1.0, "eval_loss": 3.0}


def test_a_round_without_a_result_gives_no_model_to_keep() -> None:
    recorded = RecordedHooks()
    rounds = Rounds(num_rounds=1, hooks=recorded.hooks())
    rounds.start(1)
    rounds.aggregated(False)
    rounds.end(1, MODEL, {})
    assert (rounds.arrays, recorded.saved, rounds.done) == (None, [], 1)


def test_each_failure_is_kept_once_and_not_too_many() -> None:
    rounds = Rounds(num_rounds=1)
    for number in [0, 0, *range(20)]:
        rounds.take_failure(str(number))
    assert rounds.failures == ["0", "1", "2", "3", "4"]
