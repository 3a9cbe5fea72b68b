"""The model that a run starts with, the models it refuses, and which model is stored at its end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedops_mqtt.aggregation.checkpoint import CheckpointStore, StartingPoint, find_starting_point
from fedops_mqtt.aggregation.errors import NonFiniteModelError
from fedops_mqtt.aggregation.rounds import Rounds
from fedops_mqtt.aggregation.run_settings import RunPlan
from fedops_mqtt.aggregation.server_run import save_model
from fedops_mqtt.protocol import RunOutcome
from fedops_mqtt.store.errors import UnsupportedArrayError
from fedops_mqtt.store.versions import ModelStore

NAN = {"w": np.array([1, np.nan])}
GOOD = {"w": np.array([1.0, 2.0])}
MASK = {"w": np.array([1.0, -np.inf])}


def open_store(folder: Path) -> ModelStore:
    return ModelStore(str(folder), task_id="t", model_name="m")


def begin(folder: Path, initial: Any = GOOD, *, run_id: str = "r", **options: Any) -> StartingPoint:
    plan = RunPlan(
        task_id="t",
        run_id=run_id,
        launch=1,
        num_rounds=3,
        is_num_rounds_set=True,
        min_clients=1,
        join="open",
        run_secret=None,
        is_resumable=True,
    )
    checkpoints = CheckpointStore(str(folder), task_id="t")
    return find_starting_point(plan, store=open_store(folder), checkpoints=checkpoints, initial=initial, **options)


def end(folder: Path, arrays: Any, outcome: RunOutcome, *, begun: Any = None) -> tuple[Any, RunOutcome, str]:
    rounds = Rounds(num_rounds=3, arrays=begun)
    rounds.nonfinite_in(begun or arrays)
    rounds.arrays, rounds.done = arrays, 3
    return save_model(open_store(folder), rounds, run_id="r", outcome=outcome, reason="why")


def test_the_next_run_does_not_start_with_a_failed_runs_model(tmp_path: Path) -> None:
    saved, outcome, reason = end(tmp_path, NAN | GOOD, RunOutcome.FAILED)
    assert (saved.version, outcome, reason) == (0, RunOutcome.FAILED, "why")
    assert Path(saved.path).is_file()
    beginning = begin(tmp_path, {"w": np.zeros(2)})
    assert beginning.arrays is not None
    assert (beginning.last_gl_model, list(beginning.arrays["w"])) == (0, [0, 0])


@pytest.mark.parametrize("outcome", [RunOutcome.COMPLETED, RunOutcome.STOPPED])
def test_a_model_with_nan_never_becomes_a_version(tmp_path: Path, outcome: RunOutcome) -> None:
    saved, ended, reason = end(tmp_path, NAN, outcome)
    assert (saved.version, ended) == (0, RunOutcome.FAILED)
    assert "'w' has 1 value" in reason
    assert open_store(tmp_path).versions() == []


def test_a_mask_of_infinities_is_stored_and_new_infinities_are_not(tmp_path: Path) -> None:
    assert end(tmp_path, MASK, RunOutcome.COMPLETED, begun=MASK)[0].version == 1
    assert end(tmp_path, MASK, RunOutcome.COMPLETED, begun=GOOD)[0].version == 0
    assert begin(tmp_path, MASK, run_id="next").arrays is not None


def test_a_round_whose_model_is_not_finite_ends_the_run_before_it_is_kept() -> None:
    kept: list[int] = []
    rounds = Rounds(num_rounds=3, num_aggregated=1)
    rounds.hooks = type(rounds.hooks)(save=lambda round_, arrays, metrics: kept.append(round_))
    rounds.end(0, GOOD, {})
    rounds.end(1, GOOD, {})
    with pytest.raises(NonFiniteModelError, match="round 2"):
        rounds.end(2, NAN, {})
    assert (rounds.done, kept, rounds.arrays) == (1, [1], GOOD)
    rounds.accepts_nonfinite = True
    rounds.end(2, NAN, {})
    assert kept == [1, 2]


def test_a_newest_version_with_nan_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = open_store(tmp_path).save(NAN).path
    with pytest.raises(NonFiniteModelError, match="model rollback") as raised:
        begin(tmp_path)
    assert path in str(raised.value)
    assert begin(tmp_path, accepts_nonfinite=True).arrays is not None


@pytest.mark.parametrize(
    ("initial", "error"), [(NAN, NonFiniteModelError), ({"w": np.zeros(2, "c8")}, UnsupportedArrayError)]
)
def test_a_model_that_could_not_be_kept_is_refused_at_the_start(tmp_path: Path, initial: Any, error: Any) -> None:
    with pytest.raises(error, match="'w'"):
        begin(tmp_path, initial)


def test_a_store_that_cannot_be_written_to_is_found_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("no folder")
    with pytest.raises(OSError, match="t"):
        begin(tmp_path)


def test_a_store_that_fails_at_the_end_is_reported_beside_the_runs_own_reason(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("no folder")
    said = [end(tmp_path, GOOD, outcome)[2] for outcome in (RunOutcome.COMPLETED, RunOutcome.FAILED)]
    assert said[0].startswith("global model was not saved: ")
    assert said[1].startswith("why; global model was not saved: ")


def test_what_was_made_again_of_a_run_is_not_that_runs_own_end(tmp_path: Path) -> None:
    open_store(tmp_path).save(GOOD, run_id="r", origin="failed run r")
    assert begin(tmp_path, run_id="r").saved is None


def test_a_run_that_was_stopped_and_saved_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    rounds = Rounds(num_rounds=3, arrays=GOOD, done=2)
    save_model(open_store(tmp_path), rounds, run_id="r", outcome=RunOutcome.STOPPED, reason="enough")
    beginning = begin(tmp_path, run_id="r")
    assert beginning.saved is not None
    assert (beginning.done, beginning.saved.outcome) == (2, RunOutcome.STOPPED)
