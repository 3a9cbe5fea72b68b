"""Processes as users start them, around a real broker."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from device_plan import DevicePlan
from reader import observing
from yard import Site, Yard

from fedops_mqtt.bus import Mosquitto


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    """Starts processes; none of them outlives the test."""
    yard = Yard(tmp_path)
    try:
        yield yard
    finally:
        await yard.clear_up()


@pytest.fixture
async def site(yard: Yard, broker: Mosquitto, task_id: str) -> AsyncIterator[Site]:
    """A broker and an observer of one task."""
    async with observing(broker.url, task_id) as observer:
        yield Site(yard, broker.url, task_id, observer)


@pytest.fixture
def device_plan(site: Site) -> DevicePlan:
    """What the devices of this test are told (see `steered`)."""
    return DevicePlan(site.yard.folder)
