"""A browser, and processes as users start them around a real broker."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from browsing import Visitor, visiting
from reader import observing
from yard import Site, Yard

from fedops_mqtt.bus import Mosquitto


@pytest.fixture
async def site(tmp_path: Path, broker: Mosquitto, task_id: str) -> AsyncIterator[Site]:
    """A broker and an observer of one task; no process outlives the test."""
    yard = Yard(tmp_path)
    try:
        async with observing(broker.url, task_id) as observer:
            yield Site(yard, broker.url, task_id, observer, has_page=True)
    finally:
        await yard.clear_up()


@pytest.fixture
async def visitor() -> AsyncIterator[Visitor]:
    """Somebody with a browser, who minds every error and every request to elsewhere."""
    async with visiting() as visitor:
        yield visitor
        visitor.check()
