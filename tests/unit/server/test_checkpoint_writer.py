"""Checkpoints are written beside the rounds, as everything was when the round ended."""

from pathlib import Path

import numpy as np
import pytest

from fedops_mqtt.aggregation.checkpoint import Checkpoint, CheckpointStore, CheckpointWriter


def checkpoint(round_: int) -> Checkpoint:
    arrays = {"w": np.full(1000, round_, np.float32)}
    return Checkpoint(run_id="r1", launch=1, round=round_, gl_model=1, arrays=arrays)


def test_the_last_of_many_checkpoints_stays_and_none_comes_after_the_end(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), task_id="t")
    writer = CheckpointWriter(store)
    for round_ in range(1, 6):
        writer.save(checkpoint(round_))
    writer.close()
    kept = store.load("r1")
    assert kept is not None
    assert kept.round == 5
    store.remove("r1")
    writer.close()
    assert store.load("r1") is None


def test_a_folder_that_cannot_be_written_to_is_reported_and_costs_no_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t").write_text("a file in the place of the folder")
    writer = CheckpointWriter(CheckpointStore(str(tmp_path), task_id="t"))
    writer.save(checkpoint(1))
    writer.close()
    assert "checkpoint was not saved" in caplog.text
