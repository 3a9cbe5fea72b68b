"""Fixtures of the line's tests."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from line_parts import Lines
from ports import free_port


@pytest.fixture
def lines() -> Iterator[Lines]:
    with ExitStack() as stack:
        yield Lines(stack)


@pytest.fixture(name="free_port")
def a_free_port() -> int:
    return free_port()
