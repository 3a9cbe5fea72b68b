"""Fixtures of the line's tests."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from line_parts import Lines


@pytest.fixture
def lines() -> Iterator[Lines]:
    with ExitStack() as stack:
        yield Lines(stack)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
