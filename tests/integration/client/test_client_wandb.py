"""Weights & Biases: rounds are logged beside the training; slow, broken or absent, it never touches it."""

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_testbed import PATIENCE_S, SECRET, MakeJob, ServeFl
from test_client_fl import Trial

from fedops_mqtt.client.client_wandb import WandbLog
from fedops_mqtt.protocol import Outcome
from fedops_mqtt.training.pipe import WandbOptions


class Run:
    """What the log needs of a wandb run."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []
        self.is_finished = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.is_finished = True


def test_rounds_are_logged_in_order_and_the_run_is_finished() -> None:
    run = Run()
    log = WandbLog(lambda: run)
    for step in range(3):
        log.log({"loss": 1.0 / (step + 1)}, step)
    assert log.close(PATIENCE_S)
    assert [step for _, step in run.logged] == [0, 1, 2]
    assert run.is_finished


def test_a_wandb_that_fails_is_logged_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Run:
        raise ConnectionError("no network")

    log = WandbLog(broken)
    log.log({"loss": 1.0}, 1)
    assert log.close(PATIENCE_S)
    assert "wandb failed" in caplog.text


def test_a_wandb_that_hangs_neither_blocks_nor_fills_the_memory() -> None:
    release = threading.Event()

    def hanging() -> Run:
        release.wait(PATIENCE_S)
        return Run()

    log = WandbLog(hanging)
    for step in range(5000):
        log.log({"loss": 1.0}, step)
    assert log._waiting.qsize() <= 1000
    assert not log.close(0.05)
    release.set()


@pytest.mark.long
async def test_wandb_in_its_offline_mode_writes_the_run(
    serve_fl: ServeFl, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    server_ip = await serve_fl("line", "r1", SECRET.hex(), "2")
    trial = Trial(
        make_job(server_ip=server_ip, wandb=WandbOptions(project="p", name="pi-v0", config={"app_digest": "5c1e" * 16}))
    )
    assert (await trial.run()).outcome is Outcome.FINISHED
    (written,) = written_in(tmp_path)
    assert b"5c1e" * 16 in written.read_bytes()
    shown = history_in(written)
    assert [each["round"] for each in shown] == [1, 2]
    for each in shown:
        assert {"n", "partition", "train_seconds", "evaluate_seconds", "round_seconds"} <= set(each)
        assert each["round_seconds"] >= each["train_seconds"]
        assert each["bytes_in"] > 0
        assert each["bytes_out"] > 0
    first, second = shown
    # Each round's own: a sum would be twice the first. A client that waits may ask once more, so they are not equal.
    assert second["bytes_in"] < 1.9 * first["bytes_in"]
    assert second["bytes_out"] < 1.9 * first["bytes_out"]


def test_fedops_calls_start_a_run_and_show_what_there_is_of_each_label(tmp_path: Path) -> None:
    program = """
from fedops_mqtt.client.client_wandb import data_status_wandb, start_wandb
run = start_wandb("0123456789" * 4, "p", "pi-v0")
data_status_wandb(run, [("zero", 3), ("one", 5)])
run.finish()
"""
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=os.environ | offline, check=True, timeout=PATIENCE_S)
    (written,) = written_in(tmp_path)
    assert b"Data Lable Histogram" in written.read_bytes()
    (table,) = tmp_path.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [["zero", 3], ["one", 5]]


BLOCK_BYTES = 32 * 1024
HEAD = struct.Struct("<IHB")
LAST_KINDS = (1, 4)
"""A record in one piece, or its last piece (LevelDB's log format, in which W&B keeps a run)."""


def records_in(path: Path) -> Iterator[bytes]:
    data, at, pieces = path.read_bytes(), HEAD.size, b""
    while at + HEAD.size <= len(data):
        if BLOCK_BYTES - at % BLOCK_BYTES < HEAD.size:
            at += BLOCK_BYTES - at % BLOCK_BYTES
            continue
        _, length, kind = HEAD.unpack_from(data, at)
        pieces += data[at + HEAD.size : at + HEAD.size + length]
        at += HEAD.size + length
        if kind in LAST_KINDS:
            yield pieces
            pieces = b""


def history_in(path: Path) -> list[dict[str, float]]:
    """Return what was logged, a dict a step."""
    from wandb.proto.wandb_internal_pb2 import Record

    history = [Record.FromString(record).history.item for record in records_in(path)]
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
        for items in history
        if items
    ]


def written_in(folder: Path) -> list[Path]:
    return list(folder.glob("wandb/offline-run-*/*.wandb"))
