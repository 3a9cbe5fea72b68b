"""Three sites that share nothing, each with a secured broker, a manager and devices, as one fleet (docs/sites.md)."""

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from line_site import model_of
from ports import free_port
from reader import Json
from secure_site import HOST
from test_deliver_app import write_project
from yard import TIMEOUT_S, Installed, Yard

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.protocol import mac_to_level
from fedops_mqtt.runtime.systemd import ExitCode

NAMES = ("north", "south", "west")
DEMO = 'module = "fedops_mqtt.demo.server"\nnum_rounds = 1\nmin_clients = 1\n'
MOVING = "moving"
DEVICES = ("02:00:00:00:00:21", "02:00:00:00:00:22")

pytestmark = pytest.mark.long


@dataclass(kw_only=True)
class OneSite:
    """A site as it is deployed; `url` is its manager's."""

    name: str
    folder: Path
    yard: Yard
    http: str
    manager: Installed | None = None

    @property
    def fleet(self) -> Path:
        return self.folder / "fleet"

    @property
    def url(self) -> str:
        return f"http://{self.http}"

    @property
    def token(self) -> str:
        return f"token-of-{self.name}"

    async def write_tasks(self, **tables: str) -> None:
        """Write the tasks file, and enrol each task's FL server."""
        text = ""
        for task, table in tables.items():
            chosen = ("--role", "server", "--task", task, "--host", HOST, "--fleet-dir", str(self.fleet))
            await done(self.yard.run("fleet", "enrol", f"server-{task}", *chosen))
            bundle = self.fleet / "bundles" / f"server-{task}" / "bundle.toml"
            text += f"[tasks.{task}]\n{table}config = {json.dumps(str(bundle))}\n"
        (self.folder / "tasks.toml").write_text(text)

    async def start_manager(self) -> None:
        self.manager = await self.yard.start(
            "manager", "--config", str(self.fleet / "bundles" / "manager" / "bundle.toml"),
            http=self.http, tasks_file=self.folder / "tasks.toml", state_dir=self.folder / "manager",
            store=self.folder / "models", manager_token=self.token, heartbeat_s=5,
        )  # fmt: skip
        await self.manager.until_printed(r"API at (\S+)")

    async def enrol(self, *macs: str, task: str, app: str) -> None:
        chosen = ("--task", task, "--app", app, "--fleet-dir", str(self.fleet))
        await done(self.yard.run("fleet", "enrol", *macs, *chosen))

    async def start_device(self, mac: str) -> Installed:
        """Start a daemon with its bundle of this site; its state folder is where it was at another site."""
        bundle = self.fleet / "bundles" / mac_to_level(mac) / "bundle.toml"
        device = await self.yard.start(
            "client", "--config", str(bundle), state_dir=self.yard.folder / "devices", heartbeat_s=5
        )
        await device.until_printed("connected to the broker")
        return device


class Sites:
    """All sites, and the verbs with all of their managers."""

    def __init__(self, yard: Yard, sites: dict[str, OneSite]) -> None:
        self._yard = yard
        self._sites = sites

    def __getitem__(self, name: str) -> OneSite:
        return self._sites[name]

    async def verb(self, *arguments: str, **settings: object) -> Installed:
        managers = ",".join(f"{each.name}={each.url}" for each in self._sites.values())
        tokens = ",".join(f"{each.name}={each.token}" for each in self._sites.values())
        return await self._yard.run(*arguments, **{"manager": managers, "manager_token": tokens, **settings})

    async def rows(self, *arguments: str) -> list[Json]:
        listed = await self.verb(*arguments, "--json")
        assert listed.process.returncode == ExitCode.OK, listed.stderr
        return [Json(json.loads(line)) for line in listed.stdout.splitlines()]


async def done(running: Any) -> Installed:
    ended: Installed = await running
    assert ended.process.returncode == ExitCode.OK, ended.stdout + ended.stderr
    return ended


@pytest.fixture
async def sites(yard: Yard) -> AsyncIterator[Sites]:
    async with AsyncExitStack() as stack:
        made = {}
        for name in NAMES:
            site = OneSite(name=name, folder=yard.folder / name, yard=yard, http=f"{HOST}:{free_port()}")
            ports = [f"--{option}={free_port()}" for option in ("port", "password-port", "websocket-port")]
            await done(yard.run("fleet", "init", "--fleet-dir", str(site.fleet), "--host", HOST, *ports))
            await stack.enter_async_context(Mosquitto(config=site.fleet / "broker" / "mosquitto.conf"))
            made[name] = site
        yield Sites(yard, made)


async def test_three_sites_with_two_tasks_each_are_one_fleet(sites: Sites) -> None:
    for number, name in enumerate(NAMES):
        site = sites[name]
        macs = {f"digits-{name}": f"02:00:00:00:00:{number}1", f"words-{name}": f"02:00:00:00:00:{number}2"}
        await site.write_tasks(**dict.fromkeys(macs, DEMO))
        for task, mac in macs.items():
            await site.enrol(mac, task=task, app="fedops_mqtt.demo:client_app")
        await site.start_manager()
        for mac in macs.values():
            await site.start_device(mac)
    tasks = [f"{kind}-{name}" for name in NAMES for kind in ("digits", "words")]
    for task in tasks:
        await done(sites.verb("start", task))
    runs = await sites.rows("runs")
    while not all(row.outcome for row in runs):
        runs = await sites.rows("runs")
    assert [(row.task_id, row.outcome) for row in runs] == [(task, "completed") for task in reversed(tasks)]
    assert [row.site for row in runs] == [task.partition("-")[2] for task in reversed(tasks)]
    assert [row.site for row in await sites.rows("clients")] == [name for name in NAMES for _ in range(2)]

    frozen, gone = sites["south"].manager, sites["west"].manager
    assert frozen is not None
    assert gone is not None
    await gone.end(signal.SIGKILL)
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        seen = await sites.verb("runs", request_timeout_s=30)
        assert seen.process.returncode == ExitCode.UNAVAILABLE
        assert [line.split()[0] for line in seen.stdout.splitlines()] == ["site", "north", "north"]
        assert "site south: no manager at" in seen.stderr
        assert "none within 30 s" in seen.stderr
        assert "site west: no manager at" in seen.stderr
        await done(sites.verb("start", "digits-north", "--wait", request_timeout_s=20))
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(TIMEOUT_S):
        shown = {"site", "north", "south"}
        while {line.split()[0] for line in (await sites.verb("runs")).stdout.splitlines()} != shown:
            continue  # a manager that was frozen for longer than its lease leads again first


async def test_a_task_moves_to_another_site(sites: Sites, yard: Yard) -> None:
    """The procedure of docs/sites.md, step by step."""
    project = write_project(yard.folder / "project", version="1.0", step=1.0)
    server_app = project / "added" / "server_app.py"
    server_app.write_text(server_app.read_text().replace("=5", "=2"))
    north, south = sites["north"], sites["south"]
    for site in (south, north, sites["west"]):  # north's term is the higher one
        await site.write_tasks(**({MOVING: ""} if site is north else {}))
        await site.start_manager()
    signed = ("--fleet", str(north.fleet))
    nowhere = await sites.verb("app", "publish", str(project), "--task", "new", *signed)
    assert "no site has task new" in nowhere.stderr
    assert "--site names the site to publish at" in nowhere.stderr
    await done(sites.verb("app", "publish", str(project), "--task", MOVING, *signed))
    await north.enrol(*DEVICES, task=MOVING, app="delivered")
    devices = [await north.start_device(mac) for mac in DEVICES]
    started = await done(sites.verb("start", MOVING, "--min-clients", "2", "--wait"))
    old_run = (await sites.rows("run", "show", started.stdout.split()[0]))[0]
    assert (old_run.site, list(model_of(old_run))) == ("north", [1.0] * 3)

    # 2, 3: models, configuration and app
    await south.write_tasks(**{MOVING: ""})
    shutil.copytree(north.folder / "models" / MOVING, south.folder / "models" / MOVING)
    there = ("--site", "south", "--fleet", str(south.fleet))
    await done(sites.verb("app", "publish", str(project), "--task", MOVING, *there))
    twice = await sites.verb("start", MOVING)
    assert twice.process.returncode == ExitCode.USAGE
    assert "task moving is at several sites: north, south" in twice.stderr
    # 4, 5: away from north, and a term that devices accept
    await north.write_tasks()
    await done(sites.verb("app", "withdraw", MOVING, "--site", "north"))
    assert south.manager is not None
    await south.manager.end()
    await south.start_manager()
    # 6: the devices
    await south.enrol(*DEVICES, task=MOVING, app="delivered")
    for device in devices:
        await device.end()
    for mac in DEVICES:
        await south.start_device(mac)
    # 7: forgotten at north
    await done(yard.run("fleet", "revoke", *DEVICES, "--fleet-dir", str(north.fleet)))
    both = await sites.verb("clients", "--forget", DEVICES[0])
    assert both.process.returncode == ExitCode.USAGE
    for mac in DEVICES:
        await done(sites.verb("clients", "--forget", mac, "--site", "north"))

    assert {row.site for row in await sites.rows("clients")} == {"south"}
    moved = await done(sites.verb("start", MOVING, "--min-clients", "2", "--run-config", "step=2.5", "--wait"))
    new_run = (await sites.rows("run", "show", moved.stdout.split()[0]))[0]
    assert (new_run.site, new_run.app_version) == ("south", "1.0")
    listed = await done(yard.run("model", "list", MOVING, "--store", str(south.folder / "models"), "--json"))
    models = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(each["version"], each["run_id"]) for each in models] == [(1, old_run.run_id), (2, new_run.run_id)]
    assert [(row.site, row.run_id) for row in await sites.rows("runs")] == [
        ("south", new_run.run_id),
        ("north", old_run.run_id),
    ]
