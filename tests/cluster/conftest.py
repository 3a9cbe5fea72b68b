"""Processes of a test on several nodes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from yard import Yard


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    """Starts processes; none of them outlives the test."""
    yard = Yard(tmp_path)
    try:
        yield yard
    finally:
        await yard.clear_up()
