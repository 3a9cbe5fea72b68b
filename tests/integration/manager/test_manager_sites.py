"""Several managers, asked as one: by Python programs, and by the verbs."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from manager_parts import PATIENCE_S, A, Api, B, House, manager_process, until, until_logged

from fedops_mqtt import AsyncSitesClient, SitesClient
from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.cli.entry import run
from fedops_mqtt.manager.client import ManagerRefusedError, ManagerUnreachableError
from fedops_mqtt.manager.sites import SiteChoiceError
from fedops_mqtt.runtime.systemd import ExitCode

NOBODY = "http://127.0.0.1:1"


@dataclass(kw_only=True)
class TwoSites:
    """Two sites with a broker, a manager and a device each; each has a task of its own, and `shared` is at both."""

    north: Api
    south: Api
    managers: str
    tasks: dict[str, str]


@asynccontextmanager
async def a_site(folder: Path, task_id: str, mac: str) -> AsyncIterator[Api]:
    async with Mosquitto() as broker:
        house = House(broker=broker, task_id=task_id, folder=folder)
        house.write_tasks("min_clients = 1")
        with house.tasks_file.open("a") as file:
            file.write('\n[tasks.shared]\nmodule = "fedops_mqtt.demo.server"\n')
        async with house.managed(manager_token=f"token-of-{folder.name}") as api, house.device(mac):

            async def is_known() -> bool:
                return bool((await api.get("/clients"))["total"])

            await until(is_known, f"client {mac}")
            yield api


@pytest.fixture
async def sites(tmp_path: Path, task_id: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TwoSites]:
    names = {"north": A, "south": B}
    for name in names:
        (tmp_path / name).mkdir()
    tasks = {name: f"{task_id}-{name}" for name in names}
    async with AsyncExitStack() as stack:
        apis = {
            name: await stack.enter_async_context(a_site(tmp_path / name, tasks[name], mac))
            for name, mac in names.items()
        }
        managers = ",".join(f"{name}={api.http.base_url}" for name, api in apis.items())
        monkeypatch.setenv("FEDOPS_MQTT_MANAGER", managers)
        monkeypatch.setenv("FEDOPS_MQTT_MANAGER_TOKEN", "north=token-of-north,south=token-of-south")
        yield TwoSites(**apis, managers=managers, tasks=tasks)


@dataclass(kw_only=True)
class Ended:
    """What a verb printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Verbs:
    """Verbs in this process, on a thread, since the managers have the loop."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *arguments: str) -> Ended:
        code = await asyncio.to_thread(run, arguments)
        printed = self._capsys.readouterr()
        assert "Traceback" not in printed.err
        return Ended(code=code, out=printed.out, err=printed.err)


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Verbs:
    return Verbs(capsys)


@contextmanager
def frozen() -> Iterator[str]:
    """An address where a process listens and never answers, as one does that was stopped."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


async def test_lists_show_every_site_each_row_with_its_site(sites: TwoSites, verb: Verbs) -> None:
    told = await verb("clients", "--json")
    assert told.code == ExitCode.OK
    assert [(row["site"], row["client_mac"]) for row in told.records] == [("north", A), ("south", B)]
    assert (await verb("clients")).out.splitlines()[0].split()[:2] == ["site", "client_mac"]
    later = [await sites.south.start(sites.tasks["south"]), await sites.north.start(sites.tasks["north"])]
    runs = await verb("runs", "--json")
    assert [(row["site"], row["run_id"]) for row in runs.records] == [("north", later[1]), ("south", later[0])]


@pytest.mark.long
async def test_with_one_manager_nothing_is_printed_about_sites(sites: TwoSites, verb: Verbs) -> None:
    for alone in (["--manager", f"north={sites.north.http.base_url}"], ["--site", "north"]):
        told = await verb("clients", *alone)
        assert (told.code, told.out.split()[:2]) == (ExitCode.OK, ["client_mac", "client_name"])
        assert "site" not in (await verb("clients", "--json", *alone)).records[0]


async def test_a_site_that_does_not_answer_is_named_with_its_reason_and_hides_no_other(
    sites: TwoSites, verb: Verbs
) -> None:
    with frozen() as silent:
        managers = f"{sites.managers},west={silent},east={NOBODY}"
        told = await verb("clients", "--manager", managers, "--request-timeout-s", "10")
    assert told.code == ExitCode.UNAVAILABLE
    assert [line.split()[:2] for line in told.out.splitlines()[1:]] == [["north", A], ["south", B]]
    assert "site west: no manager at" in told.err
    assert "none within 10 s" in told.err
    assert "site east: no manager at" in told.err
    given = ("--manager", f"{sites.managers},west=http://127.0.0.1:2,east={NOBODY}", "--request-timeout-s", "300")
    problems = [row for row in (await verb("clients", "--json", *given)).records if "problem" in row]
    assert [row["site"] for row in problems] == ["west", "east"]
    unknown = await verb("start", "nothing", *given)
    assert unknown.code == ExitCode.UNAVAILABLE
    assert "task nothing was not found: north, south do not have it" in unknown.err
    assert (await verb("start", sites.tasks["south"], *given)).code == ExitCode.OK


async def test_a_wrong_token_is_the_problem_of_its_site_only(
    sites: TwoSites, verb: Verbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDOPS_MQTT_MANAGER_TOKEN", "north=token-of-south,south=token-of-south")
    told = await verb("clients")
    assert told.code == ExitCode.NO_PERMISSION
    assert [line.split()[0] for line in told.out.splitlines()[1:]] == ["south"]
    assert "site north: the manager refuses us" in told.err


@pytest.mark.long
async def test_a_verb_acts_at_the_site_that_has_the_task_or_the_run(sites: TwoSites, verb: Verbs) -> None:
    started = (await verb("start", sites.tasks["south"], "--json")).records[0]
    assert started["site"] == "south"
    run_id = str(started["run_id"])
    assert [row["run_id"] for row in (await sites.south.get("/runs"))["items"]] == [run_id]
    assert (await sites.north.get("/runs"))["total"] == 0
    assert (await verb("run", "show", run_id, "--json")).records[0]["site"] == "south"
    assert (await verb("stop", run_id, "--wait", "--json")).records[0]["outcome"] == "stopped"
    assert (await verb("metrics", run_id, "--csv")).out.split(",")[0].strip() == "site"
    lost = await verb("stop", "run-of-nobody")
    assert (lost.code, "no site has run run-of-nobody; asked: north, south" in lost.err) == (ExitCode.FAILED, True)


@pytest.mark.long
async def test_a_task_of_two_sites_needs_the_name_of_one(sites: TwoSites, verb: Verbs) -> None:
    refused = await verb("start", "shared")
    assert refused.code == ExitCode.USAGE
    assert "task shared is at several sites: north, south. --site chooses one." in refused.err
    assert (await verb("start", "shared", "--site", "south")).code == ExitCode.OK
    assert (await sites.south.get("/runs"))["total"] == 1
    nowhere = await verb("start", "nothing")
    assert (nowhere.code, "no site has task nothing; asked: north, south" in nowhere.err) == (ExitCode.FAILED, True)
    wrong = await verb("runs", "--site", "est")
    assert (wrong.code, "--manager names north, south" in wrong.err) == (ExitCode.USAGE, True)


async def test_a_client_is_forgotten_at_the_site_that_knows_it(sites: TwoSites, verb: Verbs) -> None:
    assert (await verb("clients", "--forget", B, "--force")).code == ExitCode.OK
    assert (await sites.north.get("/clients"))["total"] == 1


@pytest.mark.parametrize("managers", ["", ",", "north=htp://a", "http://a,nonsense"])
def test_what_is_no_list_of_managers_is_a_sentence(managers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["clients", "--manager", managers]) == ExitCode.CONFIG
    assert "--manager wants http://host:port" in capsys.readouterr().err


async def test_a_program_gets_what_each_site_answers(sites: TwoSites) -> None:
    token = "north=token-of-north,south=nonsense"
    async with AsyncSitesClient(f"{sites.managers},east={NOBODY}", token=token, timeout_s=PATIENCE_S) as fleet:
        assert fleet.names == ("north", "south", "east")
        clients = await fleet.clients()
        assert {name: [each.client_mac for each in found] for name, found in clients.by_site.items()} == {"north": [A]}
        assert isinstance(clients.problems["south"], ManagerRefusedError)
        assert isinstance(clients.problems["east"], ManagerUnreachableError)
        at_north = await fleet.at_task(sites.tasks["north"])
        started = await at_north.start(sites.tasks["north"])
        assert (await fleet.at_run(started.run_id)).url == at_north.url
        assert (await fleet.runs()).by_site["north"][0].run_id == started.run_id
        with pytest.raises(SiteChoiceError) as unknown:
            await fleet.at_task(sites.tasks["south"])
        assert (unknown.value.found, unknown.value.asked) == ((), ("north",))
        assert set(unknown.value.problems) == {"south", "east"}


async def test_it_works_beside_an_event_loop_as_a_notebook_has_one() -> None:
    with SitesClient(f"north={NOBODY}") as fleet:
        assert list(fleet.health().problems) == ["north"]


async def test_a_program_without_an_event_loop_gets_the_same(sites: TwoSites) -> None:
    def ask() -> tuple[Sequence[str], str]:
        with SitesClient(sites.managers, token="north=token-of-north,south=token-of-south") as fleet:
            assert not fleet.health().problems
            run_id = fleet.at_task(sites.tasks["south"]).start(sites.tasks["south"]).run_id
            assert fleet.at_run(run_id).stop(run_id).run_id == run_id
            return [name for name, found in fleet.clients().by_site.items() if found], fleet.site_of_run(run_id)

    assert await asyncio.to_thread(ask) == (["north", "south"], "south")


@pytest.mark.long
async def test_of_a_site_with_a_standby_the_leader_is_asked(house: House, verb: Verbs) -> None:
    async with manager_process(house) as first, manager_process(house, waits=False) as second:
        standby = (await until_logged(second, "waits for the lead")).rpartition(" ")[2]
        managers = f"only={standby},only={first.url}"
        assert (await verb("runs", "--manager", managers)).code == ExitCode.OK
        assert (await verb("start", house.task_id, "--manager", managers)).code == ExitCode.OK
