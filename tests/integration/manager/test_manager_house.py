"""The whole house as processes: real daemons, a real FL server on the line, and a manager killed in the middle."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from manager_parts import A, B, House, api_at, manager_process, until


@asynccontextmanager
async def daemon(house: House, mac: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A client daemon as a person starts it."""
    folder = house.folder / mac.replace(":", "-")
    folder.mkdir()
    command = (
        sys.executable, "-m", "fedops_mqtt.cli", "client", "--task-id", house.task_id, "--app",
        "fedops_mqtt.demo:client_app", "--broker", house.broker.url, "--mac", mac, "--state-dir", str(folder),
    )  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.fixture
async def daemons(house: House) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(daemon(house, mac)) for mac in (A, B)]


def write_digits(house: House, *, num_rounds: int) -> None:
    """The demo's server, with enough work in a round for a kill to fall into the run."""
    command = [sys.executable, "-m", "fedops_mqtt.demo.server", "--epochs", "10"]
    house.write_tasks(f"command = {command!r}", f"num_rounds = {num_rounds}", limits="join_s = 60")


@pytest.mark.usefixtures("daemons")
async def test_a_manager_killed_while_real_clients_train_finishes_their_run(house: House) -> None:
    write_digits(house, num_rounds=4)
    async with manager_process(house) as first, api_at(first.url) as api:
        run_id = await api.start(house.task_id, min_clients=2)
        await until(lambda: has_round(api, run_id, 1), "the first round")
        assert (await api.run(run_id))["outcome"] is None
        first.kill()
        await first.gone()
    async with manager_process(house) as second, api_at(second.url) as api:
        run = await api.ended(run_id)
        assert (run["outcome"], run["reason"], run["launch"], run["round"]) == ("completed", "all rounds done", 1, 4)
        assert run["metrics"]["accuracy"] >= 0.9
        assert await asyncio.to_thread(Path(run["model_path"]).is_file)
        assert {client["attempt"] for client in run["clients"].values()} == {1}
        run = await api.run_when(run_id, lambda run: {c["status"] for c in run["clients"].values()} == {"finished"})
        assert run["trigger_to_training_ms"]["max"] < 20_000


@pytest.mark.usefixtures("daemons")
async def test_real_clients_go_on_with_the_server_that_replaces_a_killed_one(house: House) -> None:
    write_digits(house, num_rounds=4)
    async with manager_process(house) as manager, api_at(manager.url) as api:
        run_id = await api.start(house.task_id, min_clients=2)
        await until(lambda: has_round(api, run_id, 2), "the second round")
        house.server().kill()
        run = await api.ended(run_id)
        assert (run["outcome"], run["launch"], run["round"]) == ("completed", 2, 4)
        assert {client["attempt"] for client in run["clients"].values()} == {1}
        exits = await api.events(run_id, "ServerExited")
        assert "SIGKILL" in exits[0]["detail"]["reason"]


async def has_round(api, run_id: str, number: int) -> bool:  # type: ignore[no-untyped-def]
    return bool((await api.run(run_id))["round"] >= number)
