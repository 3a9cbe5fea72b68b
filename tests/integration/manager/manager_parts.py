"""What the manager's tests are made of: a manager in this process or one of its own, devices, and a scripted server."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from leftovers import processes
from postgres import Postgres

from fedops_mqtt.bus import BusOptions, Connection, MemoryEpochs, Mosquitto, Received, StatusOwner, new_instance
from fedops_mqtt.cli.roles import BUNDLE_SERVER
from fedops_mqtt.core.client import Client, Identity, apply, last_will, snapshot
from fedops_mqtt.core.client_state import Event, PhaseReport, ShutDown, TrainingEnded
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.manager.app import run_manager
from fedops_mqtt.protocol import ClientStatus, Outcome, Phase, StartTrigger, StopTrigger, topics, utc_now
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.files import write_atomically
from fedops_mqtt.runtime.settings import ManagerSettings

PATIENCE_S = 300.0
"""How long a test waits for what must come; generous, since a passing test never uses it up."""

HERE = Path(__file__).parent
A, B, C = (f"02:00:00:00:00:0{number}" for number in range(1, 4))
QUICK = BusOptions(backoff_initial_s=0.02, backoff_max_s=0.1, connect_timeout_s=60.0, publish_timeout_s=60.0)

QUICK_LIMITS = """
trigger_answer_s = 120
trigger_retry_s = 0.5
server_start_s = 300
join_s = 120
close_grace_s = 0.5
server_lost_s = 60
"""
"""Nothing that a slow machine would pass; who waits for a limit to pass sets that one shorter."""


async def until(ask: Callable[[], Awaitable[Any]], what: str = "what was waited for") -> Any:
    """Ask again and again until the answer is true, and return it."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (answer := await ask()):  # noqa: ASYNC110 - what a manager says over HTTP is asked for
                await asyncio.sleep(0.1)
            return answer
    except TimeoutError as error:
        raise AssertionError(f"{what} did not come within {PATIENCE_S:g} s") from error


@dataclass(kw_only=True)
class Api:
    """A manager's API as a test uses it."""

    http: httpx.AsyncClient

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.http.get(f"/api/v1{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def start(self, task_id: str, **wanted: Any) -> str:
        answer = await self.http.post("/api/v1/runs", json={"task_id": task_id, **wanted})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["run_id"])

    async def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.get(f"/runs/{run_id}")
        return found

    async def run_when(self, run_id: str, is_so: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            run = await self.run(run_id)
            return run if is_so(run) else None

        run: dict[str, Any] = await until(look, f"run {run_id}")
        return run

    async def training(self, run_id: str, num_clients: int = 2) -> dict[str, Any]:
        """Wait until so many clients train."""

        def do_they(run: dict[str, Any]) -> bool:
            assert run["outcome"] is None, run["reason"]
            return [each["status"] for each in run["clients"].values()] == ["training"] * num_clients

        return await self.run_when(run_id, do_they)

    async def ended(self, run_id: str) -> dict[str, Any]:
        return await self.run_when(run_id, lambda run: run["outcome"] is not None)

    async def events(self, run_id: str, kind: str) -> list[dict[str, Any]]:
        return [row for row in (await self.get(f"/runs/{run_id}/events"))["items"] if row["kind"] == kind]


@asynccontextmanager
async def api_at(url: str, token: str | None = None) -> AsyncIterator[Api]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=PATIENCE_S) as http:
        yield Api(http=http)


@dataclass(kw_only=True)
class House:
    """A broker, a folder, a task with a scripted server."""

    broker: Mosquitto
    task_id: str
    folder: Path
    postgres: Postgres | None = None
    """Where the journals are; None: each beside its manager's state, in a SQLite file."""
    _databases: dict[Path, str] = field(default_factory=dict)

    def database_url(self, state_dir: Path) -> str:
        """The journal of a manager with this state; one that starts with no state starts with no journal."""
        if self.postgres is None:
            return f"sqlite:///{state_dir / 'manager.db'}"
        if state_dir not in self._databases:
            self._databases[state_dir] = self.postgres.new_database()
        return self._databases[state_dir]

    def write_tasks(self, *lines: str, limits: str = QUICK_LIMITS) -> None:
        self.commands.mkdir(exist_ok=True)
        command = [sys.executable, str(HERE / "scripted_server.py"), str(self.commands)]
        ways = [f"command = {command!r}"] if not any(line.startswith(("command", "adopt")) for line in lines) else []
        text = [f"[tasks.{self.task_id}]", *ways, *lines, f"[tasks.{self.task_id}.limits]", limits]
        self.tasks_file.write_text("\n".join(text))

    @property
    def tasks_file(self) -> Path:
        return self.folder / "tasks.toml"

    @property
    def commands(self) -> Path:
        """What the scripted server is told."""
        return self.folder / "commands"

    def command_server(self, command: str, text: str = "") -> None:
        write_atomically(self.commands / command, text.encode())  # the server looks for it all the time

    def take_back(self, command: str) -> None:
        (self.commands / command).unlink()

    def servers(self) -> list[psutil.Process]:
        """Return the FL servers of this test, whoever launched them."""
        return [process for process in processes() if self._has_launched(process)]

    def _has_launched(self, process: psutil.Process) -> bool:
        """A server leads a session of its own; what it starts has its environment too."""
        try:
            is_leader = os.getsid(process.pid) == process.pid
            return is_leader and process.environ().get("FEDOPS_MQTT_TASK_ID") == self.task_id
        except (psutil.Error, OSError):
            return False

    def server(self) -> psutil.Process:
        (only,) = self.servers()
        return only

    def settings(self, **changes: Any) -> ManagerSettings:
        given = {
            "broker": self.broker.url, "http": "127.0.0.1:0", "tasks_file": self.tasks_file,
            "state_dir": self.folder / "state", "store": str(self.folder / "models"), "server_stop_grace_s": 3.0,
            "backoff_initial_s": 0.02, "backoff_max_s": 0.1,
        }  # fmt: skip
        wanted = {**given, **changes}
        return ManagerSettings(**{"database_url": self.database_url(Path(wanted["state_dir"])), **wanted})

    @asynccontextmanager
    async def managed(
        self, *, ends_servers: bool = True, wall_clock: Callable[[], float] = time.time, **changes: Any
    ) -> AsyncIterator[Api]:
        """A manager in this process."""
        stop, url = asyncio.Event(), asyncio.get_running_loop().create_future()
        settings = self.settings(**changes)
        life = run_manager(
            settings,
            bundle_server=BUNDLE_SERVER,
            ends_servers=ends_servers,
            on_ready=url.set_result,
            stop=stop,
            wall_clock=wall_clock,
        )
        async with AsyncExitStack() as stack:
            manager = asyncio.create_task(life)
            stack.push_async_callback(asyncio.wait, [manager])
            stack.callback(stop.set)
            await asyncio.wait((manager, url), return_when=asyncio.FIRST_COMPLETED)
            assert url.done(), f"the manager ended with {manager.result()}"
            token = settings.manager_token.get_secret_value() if settings.manager_token else None
            yield await stack.enter_async_context(api_at(url.result(), token))
        assert manager.result() == 0

    @asynccontextmanager
    async def device(self, mac: str = A, **changes: Any) -> AsyncIterator["Device"]:
        async with Device(self.broker.url, self.task_id, mac, **changes).living() as device:
            yield device


class Device:
    """A client daemon that trains nothing: the real client machine and the real owner of a status.

    `ignores_triggers`: it takes no trigger; `is_stubborn`: it trains on after a stop. A trained run goes on until the
    test says `finishes`.
    """

    def __init__(
        self,
        url: str,
        task_id: str,
        mac: str,
        *,
        ignores_triggers: bool = False,
        is_stubborn: bool = False,
        heartbeat_s: float = 60.0,
    ) -> None:
        self.url = url
        self.mac = mac
        self.ignores_triggers = ignores_triggers
        self.is_stubborn = is_stubborn
        self.starts: list[StartTrigger] = []
        """Each once: a manager repeats one until it sees the client train, which on a busy machine takes a while."""
        self.stops: list[StopTrigger] = []
        self.client = Client(
            identity=Identity(task_id=task_id, client_mac=mac, client_name="test", instance=new_instance())
        )
        self._heartbeat_s = heartbeat_s

    @asynccontextmanager
    async def living(self) -> AsyncIterator[Self]:
        me = self.client.identity
        self.owner = StatusOwner(
            topic=topics.client_status(me.task_id, me.client_mac), instance=me.instance,
            make_snapshot=self._status_at, make_will=self._say_will, make_goodbye=self._say_goodbye,
            epochs=MemoryEpochs(), heartbeat_s=self._heartbeat_s,
        )  # fmt: skip
        hears = [str(topics.client_start(me.task_id, self.mac)), str(topics.client_stop(me.task_id, self.mac))]
        async with self.owner.on_bus(self.url, client_id=None, subscriptions=hears, options=QUICK) as bus:
            self.bus = bus
            await self.owner.flush(PATIENCE_S)
            async with alongside(self._hear(bus), name=f"device-{self.mac}"):
                yield self

    def happens(self, event: Event) -> None:
        self.client = apply(self.client, event).client
        self.owner.update()

    def finishes(self, outcome: Outcome = Outcome.FINISHED, reason: str | None = None) -> None:
        mine = self.client.facts.active_training
        assert mine is not None
        self.happens(TrainingEnded(outcome=outcome, reason=reason))

    async def _hear(self, bus: Connection) -> None:
        while True:
            for event in await bus.drain():
                message = event.message if isinstance(event, Received) else None
                if isinstance(message, StartTrigger) and not self.ignores_triggers:
                    if _aim(message) not in map(_aim, self.starts):
                        self.starts.append(message)
                    self.happens(message)
                    if self.client.facts.active_training:
                        self.happens(PhaseReport(phase=Phase.TRAINING, round=1))
                elif isinstance(message, StopTrigger):
                    self.stops.append(message)
                    if self.is_stubborn:
                        continue
                    self.happens(message)
                    if self.client.facts.active_training:
                        self.finishes(Outcome.STOPPED, "stopped")

    def _status_at(self, stamp: Stamp) -> ClientStatus:
        return snapshot(self.client, stamp, at=utc_now(), heartbeat_s=self._heartbeat_s, agent={})

    def _say_goodbye(self, stamp: Stamp, reason: str) -> ClientStatus:
        self.client = apply(self.client, ShutDown(reason=reason)).client
        return self._status_at(stamp)

    def _say_will(self, stamp: Stamp) -> ClientStatus:
        return last_will(self.client.identity, stamp, at=utc_now(), heartbeat_s=self._heartbeat_s)


def _aim(start: StartTrigger) -> tuple[object, ...]:
    return start.run_id, start.attempt, start.launch, start.term


@dataclass(kw_only=True)
class ManagerProcess:
    """A manager as a process, to be killed."""

    process: asyncio.subprocess.Process
    url: str
    lines: list[str] = field(default_factory=list)

    def kill(self) -> None:
        self.process.kill()

    async def gone(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


async def start_manager_process(house: House, *, waits: bool = True, **changes: Any) -> ManagerProcess:
    """Start a manager of its own; it says `ready URL`, or what it waits for."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "manager_program.py"), house.settings(**changes).model_dump_json(),
        stdout=asyncio.subprocess.PIPE, limit=2**20,
    )  # fmt: skip
    manager = ManagerProcess(process=process, url="")
    if waits:
        await until_logged(manager, "ready")
    return manager


async def until_logged(manager: ManagerProcess, start: str) -> str:
    """Wait until a manager process prints a line that begins with `start`."""
    assert manager.process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := (await manager.process.stdout.readline()).decode().strip():
            manager.lines.append(line)
            if line.startswith("ready "):
                manager.url = line.removeprefix("ready ")
            if line.startswith(start):
                return line
    raise AssertionError(f"the manager never printed {start!r}, only {manager.lines}")


async def launched_while_the_first_is_stuck(house: House, api: Api, end: Callable[[], Any], start_s: float) -> None:
    """Start a run whose first server never gets ready and does not end before `end`; the second one trains."""
    house.command_server("stuck")
    run_id = await api.start(house.task_id)
    run = await api.run_when(run_id, lambda run: run["launch"] == 2 and run["reason"])
    assert run["reason"] == "an earlier launch of its FL server has not been seen to end"
    await asyncio.sleep(start_s + 2)  # at least: a server that has not been started is not late
    run = await api.run(run_id)
    assert (run["launch"], run["outcome"], len(house.servers())) == (2, None, 1)
    await asyncio.to_thread(end)
    assert (await api.training(run_id))["launch"] == 2


@asynccontextmanager
async def manager_process(house: House, *, waits: bool = True, **changes: Any) -> AsyncIterator[ManagerProcess]:
    manager = await start_manager_process(house, waits=waits, **changes)
    try:
        yield manager
    finally:
        if manager.process.returncode is None:
            with suppress(ProcessLookupError):
                manager.process.send_signal(signal.SIGTERM)
        await manager.process.communicate()


async def run_that_ends_without_a_manager(house: House, *devices: Device, **changes: Any) -> str:
    """Kill the manager as the devices train and let the run come to its end; return its id."""
    async with manager_process(house, **changes) as manager, api_at(manager.url) as api:
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        manager.kill()
        await manager.gone()
    server = house.server()
    house.command_server("finish", "all rounds done")
    for device in devices:
        device.finishes()
    await asyncio.to_thread(psutil.wait_procs, [server], 20)
    return run_id
