"""The examples of the heavy frameworks, each run to its end; `make test-frameworks` installs what they need."""

from pathlib import Path

import pytest
from examples_run import check


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("example", "accuracy"), [("digits_torch", 0.85), ("digits_keras", 0.85), ("lora_tiny", 0.8)])
def test_an_example_learns_what_fedavg_by_hand_learns(example: str, accuracy: float, tmp_path: Path) -> None:
    check(example, tmp_path, accuracy=accuracy, tolerance=2e-4)
