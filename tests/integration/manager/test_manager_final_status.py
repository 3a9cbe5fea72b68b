"""A server's final status that never reaches the bus: the manager reads it from the file that the server wrote."""

import asyncio
from pathlib import Path

import pytest
from manager_parts import A, Api, B, Device, House, api_at, manager_process, run_that_ends_without_a_manager, until

from fedops_mqtt.protocol import RunOutcome


async def end_unpublished(house: House, api: Api, devices: tuple[Device, Device]) -> str:
    """Bring a run to its end, which its server keeps and cannot say; return its id."""
    house.command_server("unpublished")
    run_id = await api.start(house.task_id)
    await api.training(run_id)
    house.command_server("finish", "all rounds done")
    for device in devices:
        device.finishes()
    return run_id


COMPLETED = (RunOutcome.COMPLETED, "all rounds done", 1, {"accuracy": 0.5})


def outcome_of(run: dict[str, object]) -> tuple[object, ...]:
    return run["outcome"], run["reason"], run["launch"], run["metrics"]


@pytest.mark.parametrize("max_launches", [1, pytest.param(3, marks=pytest.mark.long)])
async def test_a_final_status_that_never_reaches_the_bus_is_read_when_the_process_has_ended(
    house: House, max_launches: int
) -> None:
    house.write_tasks("min_clients = 2", limits=f"max_launches = {max_launches}")
    async with house.managed() as api, house.device(A) as a, house.device(B) as b:
        assert outcome_of(await api.ended(await end_unpublished(house, api, (a, b)))) == COMPLETED


@pytest.mark.long
async def test_a_final_status_is_read_while_no_broker_is_reachable(house: House) -> None:
    async with house.managed() as api, house.device(A), house.device(B):
        house.command_server("unpublished")
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        await house.broker.terminate()
        house.command_server("finish", "all rounds done")
        assert outcome_of(await api.ended(run_id)) == COMPLETED
        await house.broker.start()


@pytest.mark.long
async def test_a_final_status_stored_while_no_manager_ran_is_read_by_the_next(house: House) -> None:
    async with house.device(A) as a, house.device(B) as b:
        house.command_server("unpublished")
        run_id = await run_that_ends_without_a_manager(house, a, b)
        async with manager_process(house) as second, api_at(second.url) as api:
            assert outcome_of(await api.ended(run_id)) == COMPLETED


@pytest.mark.long
async def test_a_server_that_stored_its_final_status_is_not_launched_again(house: House) -> None:
    house.write_tasks("min_clients = 2", limits="server_lost_s = 20\nclose_grace_s = 0.5")
    house.command_server("linger")
    async with house.managed(heartbeat_s=0.5) as api, house.device(A) as a, house.device(B) as b:
        assert outcome_of(await api.ended(await end_unpublished(house, api, (a, b)))) == COMPLETED


async def test_files_that_a_manager_names_by_relative_paths_are_found_from_its_servers_folder(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.write_tasks("min_clients = 2", 'cwd = "commands"')
    monkeypatch.chdir(house.folder)
    relative = {"state_dir": Path("state"), "store": "models"}
    async with house.managed(**relative) as api, house.device(A) as a, house.device(B) as b:
        house.command_server("unpublished")
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        environ = house.server().environ()
        names = ("RUN_SECRET_FILE", "FINAL_STATUS_FILE", "STATE_DIR", "STORE")
        assert [name for name in names if not Path(environ[f"FEDOPS_MQTT_{name}"]).is_absolute()] == []
        house.command_server("finish", "all rounds done")
        a.finishes()
        b.finishes()
        assert outcome_of(await api.ended(run_id)) == COMPLETED


async def test_a_final_status_is_deleted_with_the_runs_logs(house: House) -> None:
    async with house.device(A) as a, house.device(B) as b:
        async with house.managed(archive_after_s=0.5) as api:
            run_id = await end_unpublished(house, api, (a, b))
            await api.ended(run_id)
            folder = house.folder / "state/manager/runs" / run_id
            assert (folder / "server-1.last-word.json").stat().st_mode & 0o777 == 0o600
            secret = house.folder / "state/manager/secrets" / run_id
            await until(lambda: is_gone(secret), "the run's archiving")
        async with house.managed(keep_runs_s=0.1):  # history is pruned as a manager begins to lead
            await until(lambda: is_gone(folder), "the end of the run's files")


async def is_gone(path: Path) -> bool:
    return not await asyncio.to_thread(path.exists)
