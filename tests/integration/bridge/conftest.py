"""A broker, a manager, a bridge and FedOps clients, each a process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bridge_parts import Crossing
from reader import observing
from yard import Site, Yard

from fedops_mqtt.bus import Mosquitto


@pytest.fixture
async def crossing(tmp_path: Path, broker: Mosquitto, task_id: str) -> AsyncIterator[Crossing]:
    """The bridge of one test."""
    yard = Yard(tmp_path)
    try:
        async with observing(broker.url, task_id) as observer:
            yield Crossing(Site(yard, broker.url, task_id, observer))
    finally:
        await yard.clear_up()
