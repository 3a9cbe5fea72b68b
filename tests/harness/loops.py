"""The event loops in which our programs run."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

HANGS_S = 300

Play = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Play:
    """Run a test in a loop: a client and its shim have asyncio's, the manager and the line have uvloop's."""

    def played(test: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(test, HANGS_S))

    return played
