"""The house of every server test."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from server_parts import House

from fedops_mqtt.bus import Mosquitto


@pytest.fixture
def house(broker: Mosquitto, task_id: str, tmp_path: Path) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(broker, task_id, tmp_path, stack)
