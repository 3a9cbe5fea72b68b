"""Flower's apps and strategies as they are: a project as Flower lays one out, by installed processes."""

import json
from typing import Any

import pytest
from yard import HERE, Site

from fedops_mqtt.protocol import ClientCondition, RunOutcome

PROJECT = HERE / "flower_project"
PROGRAM = "adding.server_app"
ROUNDS = 2
MESSAGE = ("FedAvg", "FedProx", "FedAdam", "FedYogi", "FedMedian", "Krum", "private")
CLASSIC = ("FedAvg", "FedProx", "FedAdam", "FedTrimmedAvg")
EXACT = {"FedAvg", "FedProx", "FedMedian", "Krum", "FedTrimmedAvg"}
"""These keep a model that all clients agree on; the others move to it at a pace of their own."""


@pytest.mark.long
async def test_message_strategies_mods_state_and_configuration_as_flower_has_them(site: Site) -> None:
    await start(site, "adding.client_app:app")
    found = await run_all(site, "app")
    assert tuple(found) == MESSAGE
    for number, (name, each) in enumerate(found.items(), start=1):
        check_model(name, each["first"])
        assert each["by_server"] == pytest.approx(each["first"], abs=1e-4)
        assert each["by_clients"] == pytest.approx(each["first"], abs=1e-4)
        assert each["trainings"] == number * ROUNDS, "Context.state is one for the whole run"
        assert each["local_epochs"] == 2, "as the project says"
        assert each["partitions"] == 0.5, "the mean of partitions 0 and 1"
    again = await run_all(site, "app", "FedAvg")
    assert again["FedAvg"]["trainings"] == (len(MESSAGE) + 1) * ROUNDS, "and for the next"
    assert again["FedAvg"]["first"] == ROUNDS


@pytest.mark.long
async def test_classic_strategies_and_numpy_clients_as_flower_has_them(site: Site) -> None:
    await start(site, "adding.client_app:classic", node_config='place="up stairs"')
    found = await run_all(site, "classic")
    assert tuple(found) == CLASSIC
    for name, each in found.items():
        check_model(name, each["first"])
        assert each["by_clients"] == pytest.approx(each["first"], abs=1e-4)
        assert each["upstairs"] == 2


async def start(site: Site, app: str, **settings: object) -> None:
    await site.start_clients(2, app, cwd=PROJECT, **settings)
    await site.start_manager(module=PROGRAM, program_cwd=PROJECT)


async def run_all(site: Site, *args: str) -> dict[str, dict[str, Any]]:
    """Run the program once and return what it said of each strategy."""
    site.write_tasks(module=PROGRAM, args=args, program_cwd=PROJECT)
    run = await site.observer.until_ended(await site.start_run(min_clients=2))
    assert run.outcome == RunOutcome.COMPLETED, run
    for mac in run.clients:
        await site.observer.until_client(mac, ClientCondition.TRAIN_FINISHED)
    return results_of(site)


def results_of(site: Site) -> dict[str, dict[str, Any]]:
    return dict(json.loads((site.yard.folder / "strategies.json").read_text()))


def check_model(name: str, first: float) -> None:
    """Every client adds 1 a round."""
    if name in EXACT:
        assert first == ROUNDS, name
    else:
        assert 0 < first < 10 * ROUNDS, name
