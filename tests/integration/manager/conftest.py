"""The house of every manager test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from manager_parts import House

from fedops_mqtt.bus import Mosquitto


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def house(request: pytest.FixtureRequest, broker: Mosquitto, task_id: str, tmp_path: Path) -> Iterator[House]:
    """A house with a journal of each kind that a manager can have."""
    postgres = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    built = House(broker=broker, task_id=task_id, folder=tmp_path, postgres=postgres)
    built.write_tasks("min_clients = 2", "num_rounds = 3")
    yield built
    for left in built.servers():
        left.kill()
