"""The examples of the heavy frameworks, each run to its end; `make test-frameworks` installs what they need."""

from pathlib import Path

import pytest
from examples_run import check


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("example", "accuracy", "tolerance"),
    [("digits_torch", 0.85, 2e-4), ("digits_keras", 0.85, None), ("lora_tiny", 0.8, 2e-4)],
)
def test_an_example_learns_what_fedavg_by_hand_learns(
    example: str, accuracy: float, tolerance: float | None, tmp_path: Path
) -> None:
    check(example, tmp_path, accuracy=accuracy, tolerance=tolerance)
