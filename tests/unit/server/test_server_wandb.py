"""wandb on the server: off unless asked for, works offline, and a broken one costs a run nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedops_mqtt.runtime.settings import ServerSettings
from fedops_mqtt.runtime.wandb_log import shown_on_wandb

PROGRAM = """
from fedops_mqtt.runtime import wandb_log
from fedops_mqtt.runtime.wandb_log import shown_on_wandb
from fedops_mqtt.runtime.settings import ServerSettings
wandb_log.CLOSE_S = 100  # a busy machine takes its time to import wandb
with shown_on_wandb(ServerSettings(wandb_project="digits"), "run-1") as show:
    for round_ in range(3):
        show({"accuracy": round_ / 3}, round_)
print("went on")
"""


def test_without_a_project_nothing_is_shown_and_wandb_is_not_loaded() -> None:
    with shown_on_wandb(ServerSettings(), "run-1") as show:
        show({"accuracy": 0.5}, 1)
    assert "wandb" not in sys.modules


@pytest.mark.long
def test_rounds_are_written_in_wandbs_offline_mode(tmp_path: Path) -> None:
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "went on"
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"accuracy" in written.read_bytes()
