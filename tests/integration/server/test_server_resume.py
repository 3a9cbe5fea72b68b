"""A server that is killed and launched again goes on after the last whole round, with the same clients."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAdam
from server_parts import WAIT_S, Bus, Client, Gate, House, gated_app

from fedops_mqtt.aggregation.checkpoint import Checkpoint, CheckpointStore
from fedops_mqtt.demo import digits
from fedops_mqtt.protocol import RunOutcome, ServerCondition, ServerStatus
from fedops_mqtt.store.tensor_file import Arrays

NUM_ROUNDS = 5
POLL_S = 0.01


def arrays_of_newest(house: House) -> Arrays:
    newest = house.models().newest()
    assert newest is not None
    return newest.arrays


async def run_undisturbed(house: House) -> Arrays:
    """What the same run gives when nobody kills its server."""
    strategy = FedAdam(eta=0.05, min_train_nodes=2, min_evaluate_nodes=2)
    async with house.listen() as bus:
        run = house.start(house.make(house.settings(num_rounds=NUM_ROUNDS), strategy=strategy))
        address = await bus.ready()
        for number in (0, 1):
            house.join(address, number)
        assert (await run).outcome is RunOutcome.COMPLETED
    return arrays_of_newest(house)


async def two_held_in_round_3(house: House, address: str, gate: Gate, run_id: str) -> list[Client]:
    """Two clients join and stand at the gate; what round 2 gave has been kept, which is written beside round 3."""
    clients = [house.join(address, number, app=gated_app(gate, from_round=3)) for number in (0, 1)]
    for _ in clients:
        await gate.wait_entered()
    await until_kept(house, run_id, 2)
    return clients


async def run_killed_in_round_3(house: House, bus: Bus) -> tuple[list[Client], ServerStatus]:
    gate = Gate()
    options: dict[str, Any] = {"num_rounds": NUM_ROUNDS, "run_id": "killed"}
    first = house.spawn("fedadam", launch=1, **options)
    address = await bus.ready(1)
    clients = await two_held_in_round_3(house, address, gate, "killed")
    first.signal(signal.SIGKILL)
    assert await first.wait() == -signal.SIGKILL
    second = house.spawn("fedadam", launch=2, **options)
    address = await bus.ready(2)
    for client in clients:
        client.runner.redirect(address, 2)
    gate.opened.set()
    last = await bus.final(2)
    assert await second.wait() == 0
    return clients, last


async def until_kept(house: House, run_id: str, round_: int) -> None:
    """Wait until a round's checkpoint is there: it is written beside the next round, and no message tells."""
    store = CheckpointStore(str(house.store), task_id=house.task_id)
    async with asyncio.timeout(WAIT_S):
        while True:
            kept = await asyncio.to_thread(store.load, run_id)
            if kept is not None and kept.round >= round_:
                return
            await asyncio.sleep(POLL_S)


@pytest.fixture
def other_house(house: House, tmp_path: Path) -> House:
    """The same task somewhere else, for a comparison."""
    return house.beside(tmp_path / "elsewhere")


@pytest.mark.long
async def test_a_killed_server_goes_on_with_round_3_and_gives_the_model_it_would_have_given(
    house: House, other_house: House
) -> None:
    undisturbed = await run_undisturbed(other_house)
    async with house.listen() as bus:
        clients, last = await run_killed_in_round_3(house, bus)
        rounds = [(await bus.round(number)).launch for number in range(1, NUM_ROUNDS + 1)]
        ends = [await client.end() for client in clients]
    assert (last.status, last.round, last.gl_model, last.launch) == (ServerCondition.FINISHED, NUM_ROUNDS, 1, 2)
    assert rounds == [1, 1, 2, 2, 2]
    assert [end.run_outcome for end in ends] == [RunOutcome.COMPLETED] * 2
    resumed = arrays_of_newest(house)
    for name, array in undisturbed.items():
        np.testing.assert_allclose(resumed[name], array, rtol=1e-4, atol=1e-5)
    kept = [path.name for path in (house.store / house.task_id / ".checkpoints").iterdir()]
    assert kept == ["killed.safetensors"]  # what FedAdam remembers, for the next run


async def test_a_launch_that_finds_its_runs_model_saved_only_reports_it(house: House) -> None:
    saved = house.models().save(digits.initial_arrays(), run_id="done", round=2, metrics={"accuracy": 0.75})
    async with house.listen() as bus:
        result = await house.start(house.make(house.settings(run_id="done", launch=2)))
        last = await bus.final(2)
    assert (result.outcome, result.model_path, result.gl_model) == (RunOutcome.COMPLETED, saved.path, 1)
    assert (last.status, last.model_path, last.metrics["accuracy"]) == (ServerCondition.FINISHED, saved.path, 0.75)
    assert house.models().versions() == [1]


async def test_a_launch_that_finds_all_rounds_in_its_checkpoint_only_saves(house: House) -> None:
    arrays = {name: array + 1 for name, array in digits.initial_arrays().items()}
    CheckpointStore(str(house.store), task_id=house.task_id).save(
        Checkpoint(run_id="nearly", launch=1, round=2, gl_model=1, arrays=arrays, metrics={"accuracy": 0.5})
    )
    result = await house.start(house.make(house.settings(run_id="nearly", launch=2)))
    assert (result.outcome, result.round, result.metrics) == (RunOutcome.COMPLETED, 2, {"accuracy": 0.5})
    for name, array in arrays_of_newest(house).items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.long
async def test_files_of_a_run_that_was_closed_without_its_server_are_removed_when_the_next_one_starts(
    house: House,
) -> None:
    gate, options = Gate(), {"num_rounds": NUM_ROUNDS, "launch": 1}
    async with house.listen() as bus:
        server = house.spawn("fedavg", run_id="closed", **options)
        address = await bus.ready(1)
        await two_held_in_round_3(house, address, gate, "closed")
        server.signal(signal.SIGKILL)
        await server.wait()
        gate.opened.set()
    async with house.listen() as bus:
        house.spawn("fedavg", run_id="next", **options)
        await bus.status(lambda status: status.run_id == "next" and status.server_ip is not None)
    assert [path.name for path in (house.store / house.task_id / ".checkpoints").iterdir()] == []
