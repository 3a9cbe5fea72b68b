"""The examples of the heavy frameworks, each run to its end; `make test-frameworks` installs what they need."""

from pathlib import Path

import pytest
from examples_run import EXAMPLES, check, check_accuracy, simulate, with_config

pytestmark = pytest.mark.long


@pytest.mark.parametrize(("example", "accuracy"), [("digits_torch", 0.85), ("lora_tiny", 0.8)])
def test_an_example_learns_what_fedavg_by_hand_learns(example: str, accuracy: float, tmp_path: Path) -> None:
    check(EXAMPLES / example, tmp_path, accuracy=accuracy, tolerance=2e-4)


def test_the_keras_example_learns(tmp_path: Path) -> None:
    check_accuracy(simulate(EXAMPLES / "digits_keras", tmp_path), 0.85)


def test_keras_learns_what_fedavg_by_hand_learns(tmp_path: Path) -> None:
    """A device's images in one batch: Keras shuffles by its process's random state, and then that cannot matter."""
    example = with_config("digits_keras", tmp_path, batch_size=2000, num_epochs=100)
    check(example, tmp_path, accuracy=0.85, tolerance=2e-4)
