"""The house of every server test."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from server_parts import House

from fedops_mqtt.bus import Mosquitto


@pytest.fixture
async def house(broker: Mosquitto, task_id: str, tmp_path: Path) -> AsyncIterator[House]:
    with ExitStack() as stack:
        house = House(broker, task_id, tmp_path, stack)
        yield house
    await house.wait_empty()
