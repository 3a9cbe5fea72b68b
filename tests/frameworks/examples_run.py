"""What tests of the examples share: a simulation of one, and the same FedAvg by hand beside it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from safetensors import safe_open

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
COMMAND = Path(sys.executable).with_name("fedops-mqtt")
NUM_CLIENTS, NUM_ROUNDS = 2, 3
LIMIT_S = 300
"""Means "hangs"."""


def simulate(example: Path, folder: Path) -> dict:
    """Run an example as its README does and return what it says."""
    where = ["--app", "client_main:make_fl_task", "--server", "server_main.py", "--task-config", "config.yaml"]
    size = ["--clients", str(NUM_CLIENTS), "--rounds", str(NUM_ROUNDS), "--folder", str(folder), "--json"]
    done = subprocess.run(
        [str(COMMAND), "simulate", *where, *size],
        cwd=example,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def by_hand(example: Path, folder: Path) -> list[np.ndarray]:
    """Do the same FedAvg in a loop."""
    out = folder / "by_hand.npz"
    arguments = [str(example), str(NUM_CLIENTS), str(NUM_ROUNDS), str(out)]
    command = [sys.executable, str(HERE / "hand_fedavg.py"), *arguments]
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}  # as a worker of the simulation has
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=one_core)
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        return [found[name] for name in found.files]


def with_config(example: str, folder: Path, **changes: object) -> Path:
    """Return a copy of an example with other entries in its configuration."""
    copy = Path(shutil.copytree(EXAMPLES / example, folder / example))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(config | changes))
    return copy


def check(example: Path, folder: Path, *, accuracy: float, tolerance: float) -> None:
    """A run comes to an accuracy that a broken adapter would not reach, and to the weights of FedAvg by hand."""
    result = simulate(example, folder)
    check_accuracy(result, accuracy)
    with safe_open(result["model_path"], framework="numpy") as file:
        arrays = [file.get_tensor(name) for name in json.loads(file.metadata()["order"])]
    expected = by_hand(example, folder)
    assert len(arrays) == len(expected)
    for array, hand in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(array, hand, rtol=tolerance, atol=tolerance, strict=True)


def check_accuracy(result: dict, accuracy: float) -> None:
    """The run came to its end with every client, and learned."""
    assert (result["outcome"], result["failed_clients"]) == ("completed", {})
    assert result["metrics"]["accuracy"] > accuracy
