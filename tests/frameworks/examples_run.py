"""What tests of the examples share: a simulation of one, and the same FedAvg by hand beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
COMMAND = Path(sys.executable).with_name("fedops-mqtt")
NUM_CLIENTS, NUM_ROUNDS = 2, 3


def simulate(example: str, folder: Path) -> dict:
    """Run an example as its README does and return what it says."""
    where = ["--app", "client_main:make_fl_task", "--server", "server_main.py", "--task-config", "config.yaml"]
    size = ["--clients", str(NUM_CLIENTS), "--rounds", str(NUM_ROUNDS), "--folder", str(folder), "--json"]
    done = subprocess.run(
        [str(COMMAND), "simulate", *where, *size],
        cwd=EXAMPLES / example,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def by_hand(example: str, folder: Path) -> list[np.ndarray]:
    """Do the same FedAvg in a loop."""
    out = folder / "by_hand.npz"
    arguments = [str(EXAMPLES / example), str(NUM_CLIENTS), str(NUM_ROUNDS), str(out)]
    command = [sys.executable, str(HERE / "hand_fedavg.py"), *arguments]
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}  # as a worker of the simulation has
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=one_core)
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        return [found[name] for name in found.files]


def check(example: str, folder: Path, *, accuracy: float, tolerance: float | None) -> None:
    """A run comes to an accuracy that a broken adapter would not reach, and to what FedAvg by hand comes to.

    `tolerance` is None where training shuffles by a process's own random state: accuracy and shapes have to do.
    """
    result = simulate(example, folder)
    assert result["outcome"] == "completed"
    assert result["failed_clients"] == {}
    assert result["metrics"]["accuracy"] > accuracy
    with safe_open(result["model_path"], framework="numpy") as file:
        arrays = [file.get_tensor(name) for name in json.loads(file.metadata()["order"])]
    expected = by_hand(example, folder)
    assert len(arrays) == len(expected)
    for array, hand in zip(arrays, expected, strict=True):
        assert array.shape == hand.shape
        if tolerance is not None:
            np.testing.assert_allclose(array, hand, rtol=tolerance, atol=tolerance)
