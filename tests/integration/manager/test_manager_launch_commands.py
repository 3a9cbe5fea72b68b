"""FL servers that a command starts: through a shell and through a real ssh, with their host lost and found again."""

import asyncio
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from delivered_far import app_with_server, hands_out_its_app
from fault_proxy import FaultProxy
from leftovers import processes
from manager_parts import A, Api, B, House, api_at, manager_process, until
from ssh_site import SshSite

from fedops_mqtt.manager import remote_launcher

PYTHON = shlex.quote(str(Path(sys.executable).parent))


@pytest.fixture(autouse=True)
def _asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_launcher, "ASK_EVERY_S", 0.5)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SshSite]:
    site = SshSite(tmp_path / "ssh")
    yield site
    site.lose()


def launched_by(
    house: House, *command: str, more: str = "", limits: str | None = None, broker: str | None = None
) -> None:
    far = house.folder / "far"
    own = f', FEDOPS_MQTT_BROKER = "{broker}"' if broker else ""
    env = f'env = {{ FEDOPS_MQTT_STATE_DIR = "{far}", FEDOPS_MQTT_STORE = "{far}/models"{own} }}'
    lines = ["min_clients = 2", f"launch = {list(command)!r}", env, more]
    house.write_tasks(*lines, **({"limits": limits} if limits else {}))


def through_a_shell(house: House, **changes: Any) -> None:
    launched_by(house, "sh", "-c", f"exec {PYTHON}/{{shell_command}}", **changes)


def through_ssh(house: House, site: SshSite, **changes: Any) -> None:
    launched_by(house, *site.command, f"{PYTHON}/{{shell_command}}", **changes)


async def log_of(api: Api, run_id: str) -> str:
    return str((await api.get(f"/runs/{run_id}/logs"))["text"])


async def until_says(api: Api, run_id: str, text: str) -> dict[str, Any]:
    return await api.run_when(run_id, lambda run: text in (run["reason"] or ""))


async def finish(house: House, api: Api, run_id: str, *devices: Any) -> dict[str, Any]:
    house.command_server("finish", "all rounds done")
    for device in devices:
        device.finishes()
    return await api.ended(run_id)


def followers(house: House) -> list[psutil.Process]:
    """The programs that read a server's log on its machine, and those that reach it."""
    found = []
    for process in processes():
        try:
            line = " ".join(process.cmdline())
            if "remote_launch" in line and str(house.folder) in line:
                found.append(process)
        except psutil.Error:
            continue
    return found


def secrets_on(house: House) -> list[Path]:
    return list((house.folder / "far/launches").glob("*/files/run_secret_file"))


async def test_a_run_through_a_command_is_as_one_of_a_local_process(house: House) -> None:
    through_a_shell(house)
    async with house.managed() as api, house.device(A) as a, house.device(B) as b:
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        arguments = " ".join(part for process in followers(house) for part in process.cmdline())
        (secret,) = secrets_on(house)
        assert house.server().environ()["FEDOPS_MQTT_RUN_SECRET_FILE"] == str(secret)
        assert secret.read_text() not in arguments
        assert secret.stat().st_mode & 0o777 == 0o600
        assert list((house.folder / "state/manager/secrets").glob("*")) == [], "handed over, not kept"
        house.command_server("unpublished")
        run = await finish(house, api, run_id, a, b)
        assert (run["outcome"], run["reason"], run["launch"]) == ("completed", "all rounds done", 1)
        assert secrets_on(house) == []


async def test_a_published_app_reaches_a_server_far_away_and_is_handed_out_from_there(house: House) -> None:
    through_a_shell(house)
    async with house.managed() as api, house.device(A) as a:
        await hands_out_its_app(house, api, a, app_with_server(padding=100_000))
        assert house.server().environ()["FEDOPS_MQTT_APP_FILE"].startswith(str(house.folder / "far"))


@pytest.mark.long
async def test_a_published_app_reaches_a_server_behind_ssh_and_is_handed_out_from_there(
    house: House, site: SshSite
) -> None:
    through_ssh(house, site)
    async with house.managed() as api, house.device(A) as a:
        await hands_out_its_app(house, api, a, app_with_server(padding=2_000_000))


@pytest.mark.long
async def test_a_killed_remote_server_is_launched_again_and_its_last_output_is_kept(house: House) -> None:
    through_a_shell(house)
    async with house.managed() as api, house.device(A), house.device(B):
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        house.server().kill()
        await api.run_when(run_id, lambda run: run["launch"] == 2 and run["status"] == "running")
        exits = await api.events(run_id, "ServerExited")
        assert exits[0]["detail"]["reason"].startswith("FL server process was ended by SIGKILL")


@pytest.mark.long
async def test_a_server_that_crashes_far_away_gives_its_log_and_status(house: House) -> None:
    through_a_shell(house, limits="max_launches = 1")
    house.command_server("crash")
    async with house.managed() as api:
        run = await api.ended(await api.start(house.task_id))
        assert "FL server process exited with status 3" in run["reason"]
        assert "it crashed on purpose" in run["reason"]
        assert "it crashed on purpose" in await log_of(api, run["run_id"])


async def test_a_program_that_is_not_there_far_away_is_named_in_the_runs_reason(house: House) -> None:
    through_a_shell(house, more='command = ["/no/such/program"]', limits="max_launches = 1")
    async with house.managed() as api:
        run = await api.ended(await api.start(house.task_id))
        assert "FL server cannot be started" in run["reason"]
        assert "/no/such/program" in run["reason"]


@pytest.mark.long
async def test_a_stop_reaches_the_server_with_its_reason(house: House, site: SshSite) -> None:
    through_ssh(house, site)
    async with house.managed() as api, house.device(A), house.device(B):
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        server = house.server()
        answer = await api.http.post(f"/api/v1/runs/{run_id}/stop", json={"reason": "for lunch"})
        assert answer.status_code < 300, answer.text
        run = await api.ended(run_id)
        assert run["outcome"] == "stopped"
        await until(lambda: _so(not server.is_running()), "the server's end")
        await until(lambda: api.events(run_id, "ServerExited"), "the exit")
        (said,) = (house.folder / "far/launches").glob("*/stop-reason")
        assert said.read_text() == f"stopped\n{run['reason']}"


@pytest.mark.long
async def test_one_that_does_not_end_when_asked_is_killed_over_ssh(house: House, site: SshSite) -> None:
    through_ssh(house, site)
    async with house.managed(server_stop_grace_s=1.0) as api, house.device(A), house.device(B):
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        server = house.server()
        server.suspend()
        await api.http.post(f"/api/v1/runs/{run_id}/stop", json={})
        await until(lambda: api.events(run_id, "ServerExited"), "the exit")
        assert not server.is_running()


@pytest.mark.long
async def test_a_lost_host_is_reported_and_no_second_server_is_started(
    house: House, site: SshSite, probes: list[bool]
) -> None:
    proxy = FaultProxy(house.broker.host, house.broker.port)
    async with proxy.running(), house.managed() as api, house.device(A) as a, house.device(B) as b:
        through_ssh(house, site, limits="server_lost_s = 1", broker=proxy.url)
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        server = house.server()
        await asyncio.to_thread(site.lose)
        run = await until_says(api, run_id, "host does not answer: ssh exited with status 255")
        assert "Connection refused" in run["reason"]
        server.suspend()
        proxy.half_open()  # the broker publishes its will: only of a server that is disconnected is its line asked
        await until(lambda: _so(probes.count(False) >= 2), "two probes of its line, the launcher asked after the first")
        assert (await api.run(run_id))["launch"] == 1, "a server whose host does not answer is not dead"
        proxy.heal()
        server.kill()
        await asyncio.to_thread(site.start)
        run = await api.run_when(run_id, lambda run: run["launch"] == 2 and run["status"] == "running")
        assert "host cannot" not in (run["reason"] or "")
        assert (await finish(house, api, run_id, a, b))["outcome"] == "completed"


@pytest.mark.long
async def test_a_run_goes_on_while_its_host_cannot_be_asked_and_its_log_is_whole_afterwards(
    house: House, site: SshSite
) -> None:
    through_ssh(house, site)
    async with house.managed() as api, house.device(A) as a, house.device(B) as b:
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        await asyncio.to_thread(site.lose)
        await until_says(api, run_id, "host does not answer")
        assert (await finish(house, api, run_id, a, b))["outcome"] == "completed", "its last word was heard"
        await asyncio.to_thread(site.start)
        await until(lambda: api.events(run_id, "ServerExited"), "the exit")
        exits = await api.events(run_id, "ServerExited")
        assert exits[0]["detail"]["reason"] == "FL server process exited with status 0"
        assert "FL server ended" in await log_of(api, run_id)


@pytest.mark.long
async def test_a_host_that_never_was_there_fails_the_run_with_why(house: House, site: SshSite) -> None:
    through_ssh(house, site, limits="max_launches = 1\nserver_start_s = 10")
    site.lose()
    async with house.managed() as api:
        run = await api.ended(await api.start(house.task_id))
        assert run["outcome"] == "failed"
        assert "FL server cannot be started" in run["reason"]
        assert "Connection refused" in run["reason"]


@pytest.mark.long
@pytest.mark.parametrize("keeps_command", [True, False])
async def test_a_manager_that_is_started_again_goes_on_with_a_server_behind_ssh(
    house: House, site: SshSite, keeps_command: bool
) -> None:
    through_ssh(house, site)
    async with house.device(A) as a, house.device(B) as b:
        async with manager_process(house) as first, api_at(first.url) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
            first.kill()
            await first.gone()
        server = house.server()
        if not keeps_command:  # the manager's host died with it
            for process in followers(house):
                if process.name() == "ssh":
                    process.send_signal(signal.SIGKILL)
        async with manager_process(house) as second, api_at(second.url) as api:
            run = await api.training(run_id)
            assert (run["launch"], server.is_running()) == (1, True)
            run = await finish(house, api, run_id, a, b)
            assert (run["outcome"], run["launch"]) == ("completed", 1)
            await until(lambda: api.events(run_id, "ServerExited"), "the exit")
            assert (await log_of(api, run_id)).count("FL server ended") == 1


@pytest.mark.long
async def test_a_manager_elsewhere_takes_over_a_server_behind_ssh_with_its_whole_log(
    house: House, site: SshSite
) -> None:
    through_ssh(house, site)
    database = f"sqlite:///{house.folder / 'shared.db'}"
    async with house.device(A) as a, house.device(B) as b:
        async with house.managed(ends_servers=False, database_url=database) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
        elsewhere = house.folder / "elsewhere"
        async with house.managed(database_url=database, state_dir=elsewhere) as api:
            await api.training(run_id)
            server = house.server()
            assert (await finish(house, api, run_id, a, b))["outcome"] == "completed"
            await until(lambda: api.events(run_id, "ServerExited"), "the exit")
            assert not server.is_running()
            assert "FL server ended" in (elsewhere / f"manager/runs/{run_id}/server-1.log").read_text()


async def test_a_store_of_the_managers_host_is_refused_for_a_server_elsewhere(house: House) -> None:
    house.write_tasks("launch = ['sh', '-c', '{shell_command}']")
    async with house.managed() as api:
        answer = await api.http.post("/api/v1/runs", json={"task_id": house.task_id})
        assert answer.status_code == 409
        assert "name the folder there with FEDOPS_MQTT_STORE" in answer.text


async def _so(answer: bool) -> bool:
    return answer
