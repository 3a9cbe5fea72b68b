"""The house of every manager test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from manager_parts import House

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.manager import servers
from fedops_mqtt.manager.line_probe import line_answers

ON_POSTGRES = "FEDOPS_TEST_ON_POSTGRES"
"""Environment variable: with any text, every manager of these tests has its journal in PostgreSQL."""


@pytest.fixture
def house(request: pytest.FixtureRequest, broker: Mosquitto, task_id: str, tmp_path: Path) -> Iterator[House]:
    postgres = request.getfixturevalue("postgres") if os.environ.get(ON_POSTGRES) else None
    built = House(broker=broker, task_id=task_id, folder=tmp_path, postgres=postgres)
    built.write_tasks("min_clients = 2", "num_rounds = 3")
    yield built
    for left in built.servers():
        left.kill()


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the line of a server that is disconnected from the bus answered, for each time it was asked."""
    answers: list[bool] = []

    async def noting(address: str, *, within_s: float) -> bool:
        answers.append(await line_answers(address, within_s=within_s))
        return answers[-1]

    monkeypatch.setattr(servers, "line_answers", noting)
    return answers
