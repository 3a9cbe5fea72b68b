"""The examples that need no heavy framework, each run to its end; the others are in tests/frameworks."""

from pathlib import Path

import pytest
from examples_run import EXAMPLES, check

pytestmark = pytest.mark.long


@pytest.mark.parametrize("example", ["digits_numpy", "digits_sklearn"])
def test_an_example_learns_what_fedavg_by_hand_learns(example: str, tmp_path: Path) -> None:
    check(EXAMPLES / example, tmp_path, accuracy=0.9, tolerance=1e-6)
