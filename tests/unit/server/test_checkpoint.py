from pathlib import Path

import numpy as np
import pytest

from fedops_mqtt.aggregation.checkpoint import Checkpoint, CheckpointStore
from fedops_mqtt.protocol import IdentityError
from fedops_mqtt.store.final_status import write_final_status


def make_checkpoint(round: int = 2, run_id: str = "run-1") -> Checkpoint:
    return Checkpoint(
        run_id=run_id,
        launch=1,
        round=round,
        gl_model=4,
        arrays={"model/w": np.ones(3, np.float32), "b": np.array(0.5)},
        strategy={
            "m_t": {"w/x": np.zeros(2)},
            "momentum_vector": [np.ones(1), np.arange(4)],
            "current": np.eye(2),
            "clipping_norm": 0.25,
            "none_yet": [],
        },
        metrics={"accuracy": 0.9},
    )


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), task_id="digits")
    store.save(make_checkpoint(1))
    store.save(make_checkpoint(2))
    found = store.load("run-1")
    assert found is not None
    assert (found.run_id, found.launch, found.round, found.gl_model) == ("run-1", 1, 2, 4)
    assert found.metrics == {"accuracy": 0.9}
    np.testing.assert_equal(found.arrays, make_checkpoint().arrays)
    np.testing.assert_equal(dict(found.strategy), dict(make_checkpoint().strategy))


def test_no_checkpoint_and_a_removed_one_are_none(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), task_id="digits")
    assert store.load("run-1") is None
    store.save(make_checkpoint())
    store.remove("run-1")
    store.remove("run-1")
    assert store.load("run-1") is None


def test_what_other_runs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), task_id="digits")
    elsewhere = CheckpointStore(str(tmp_path), task_id="faces")
    elsewhere.save(make_checkpoint())
    store.remove_others("run-1")
    for run_id in ("run-0", "run-1", "run-2"):
        store.save(make_checkpoint(run_id=run_id))
        write_final_status(str(tmp_path), b"{}", task_id="digits", run_id=run_id)
    store.remove_others("run-1")
    kept = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.*")) if path.is_file()]
    assert kept == [
        "digits/.checkpoints/run-1.final-status.json",
        "digits/.checkpoints/run-1.safetensors",
        "faces/.checkpoints/run-1.safetensors",
    ]


def test_a_corrupt_checkpoint_is_skipped_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(str(tmp_path), task_id="digits")
    store.save(make_checkpoint())
    path = tmp_path / "digits" / ".checkpoints" / "run-1.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert store.load("run-1") is None
    assert "checkpoint passed over" in caplog.text


def test_a_run_id_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(IdentityError):
        CheckpointStore(str(tmp_path), task_id="digits").load("../../etc")
