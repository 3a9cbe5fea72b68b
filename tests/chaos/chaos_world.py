"""The whole fleet as installed processes around a real broker, each behind a proxy of its own, and what can befall it.

Every fault says for how long it lasts and is undone by whoever caused it; two faults never hold one target at once.
"""

import asyncio
import random
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from cluster_site import SCREENS, enrol_task, reading
from fault_proxy import FaultProxy
from nodes import PROFILES, Node
from ports import free_port
from postgres import Postgres
from reader import Observer, observing
from secure_site import HOST, SecureSite
from spy import Spy, spying
from yard import Installed, Yard

from fedops_mqtt import AsyncManagerClient
from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.bus.owner import EpochFile
from fedops_mqtt.demo.reaper import marked
from fedops_mqtt.device.journal import identity_dir
from fedops_mqtt.enrolment import FleetFolder
from fedops_mqtt.manager.client import ManagerClientError

TASK = "chaos"
SERVER = "server-chaos"
NUM_ROUNDS = 10
EPOCHS_A_ROUND = 40
QUICK = {"keepalive_s": 2, "heartbeat_s": 2, "backoff_max_s": 2, "connect_timeout_s": 4, "publish_timeout_s": 4}
CLIENT = {**QUICK, "join_limit_s": 20, "rejoin_limit_s": 40, "run_limit_s": 90, "stop_grace_s": 2}
LIMITS = {
    "trigger_answer_s": 8,
    "trigger_retry_s": 1,
    "server_start_s": 30,
    "join_s": 25,
    "round_s": 20,
    "run_s": 90,
    "close_grace_s": 3,
    "server_lost_s": 6,
    "max_launches": 5,
    "max_attempts": 20,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that happens: when (s from the start), what, to whom, for how long (s)."""

    at_s: float
    kind: str
    target: int
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.at_s:6.1f} s  {self.kind:<16} #{self.target}  for {self.lasts_s:.1f} s"


def make_schedule(seed: int, *, seconds: float, num_clients: int, profile: str = "single") -> list[Fault]:
    """Return the faults that this seed stands for; the same arguments give the same faults."""
    faults_of = FAULTS_OF[profile]
    source = random.Random(seed)
    faults: list[Fault] = []
    at_s = 2.0
    while at_s < seconds:
        faults.append(
            Fault(
                at_s=at_s,
                kind=source.choices(list(faults_of), weights=[weight for weight, _ in faults_of.values()])[0],
                target=source.randrange(num_clients),
                lasts_s=source.uniform(0.2, 8.0),
            )
        )
        at_s += source.expovariate(1 / 2.5)
    return faults


@dataclass(kw_only=True)
class Ground:
    """What a world stands on: broker nodes and what stands before them, identities, a database server."""

    nodes: list[Node]
    host: str
    port: int
    secure: SecureSite | None = None
    """Where everybody is enrolled and speaks TLS; None: a broker without access control."""
    postgres: Postgres | None = None
    database_url: str | None = None
    settings: dict[str, object] = field(default_factory=dict)

    def url(self, proxy: FaultProxy) -> str:
        return f"mqtts://{proxy.address}" if self.secure else proxy.url

    def config(self, name: str) -> tuple[str, ...]:
        """The options that give a process its identity."""
        return ("--config", str(self.secure.bundle(name))) if self.secure else ()

    def observing(self) -> AbstractAsyncContextManager[Observer]:
        """A newcomer who looks at the bus."""
        if self.secure:
            return reading(self.secure, SCREENS[0], TASK)
        return observing(f"mqtt://{self.host}:{self.port}", TASK)


class World:
    """Brokers, a manager and clients, kept alive; see `faults` for what may befall them."""

    def __init__(self, yard: Yard, ground: Ground, spy: Spy | None, proxies: list[FaultProxy]) -> None:
        self.yard = yard
        self.ground = ground
        self.spy = spy
        self.proxies = proxies[1:]
        self.manager_proxy = proxies[0]
        self.macs = macs_of(len(proxies) - 1)
        self.clients: list[Installed] = []
        self.daemons: list[list[Installed]] = []
        self.manager: Installed | None = None
        self.managers: list[Installed] = []
        self.lost_states: set[int] = set()
        """Numbers of the clients whose state folder was lost once."""
        self.wanted_ends: dict[str, frozenset[int]] = {}
        """By name of a process: the return codes to which we brought it ourselves."""
        self.manager_address = f"127.0.0.1:{free_port()}"
        self._busy: set[str] = set()

    @property
    def manager_state(self) -> Path:
        return self.yard.folder / "manager"

    @property
    def store(self) -> Path:
        return self.yard.folder / "models"

    def client_state(self, number: int) -> Path:
        return self.yard.folder / f"client-{number}"

    def everybody(self) -> Iterator[Installed]:
        """Every process that was started, dead or alive."""
        for daemons in self.daemons:
            yield from daemons
        yield from self.managers

    async def start(self) -> None:
        """Start all; the first client's clock was years ahead once, as a device without a battery has it."""
        EpochFile(identity_dir(self.client_state(0), TASK, self.macs[0]) / "epoch").save(YEARS_AHEAD_MS)
        for number in range(len(self.macs)):
            self.daemons.append([])
            self.clients.append(await self._start_client(number))
        self.manager = await self._start_manager()

    async def suffer(self, fault: Fault) -> bool:
        """Let a fault happen and undo it; False when its target is in trouble already."""
        target = _target_of(fault)
        if target in self._busy:
            return False
        self._busy.add(target)
        try:
            await FAULTS_OF["postgres"][fault.kind][1](self, fault)
        finally:
            self._busy.discard(target)
        return True

    async def _start_client(self, number: int) -> Installed:
        daemon = await self.yard.start(
            "client",
            *self.ground.config(self.macs[number]),
            broker=self.ground.url(self.proxies[number]),
            task_id=TASK,
            app="fedops_mqtt.demo:client_app",
            mac=self.macs[number],
            state_dir=self.client_state(number),
            partition_id=number,
            num_partitions=len(self.macs),
            **CLIENT | self.ground.settings,
        )
        self.daemons[number].append(daemon)
        return daemon

    async def _start_manager(self) -> Installed:
        tasks = self.yard.folder / "tasks.toml"
        limits = "\n".join(f"{name} = {value}" for name, value in LIMITS.items())
        tasks.write_text(
            f'[tasks.{TASK}]\nmodule = "fedops_mqtt.demo.server"\nargs = ["--epochs", "{EPOCHS_A_ROUND}"]\n'
            f"num_rounds = {NUM_ROUNDS}\nmin_clients = 2\n{self._server_config()}[tasks.{TASK}.limits]\n{limits}\n"
        )
        database = {"database_url": self.ground.database_url} if self.ground.database_url else {}
        manager = await self.yard.start(
            "manager",
            *self.ground.config("manager"),
            broker=self.ground.url(self.manager_proxy),
            tasks_file=tasks,
            http=self.manager_address,
            state_dir=self.manager_state,
            store=self.store,
            line_ping_s=1,
            **QUICK | self.ground.settings | database,
        )
        self.managers.append(manager)
        return manager

    def _server_config(self) -> str:
        return f"config = {str(self.ground.secure.bundle(SERVER))!r}\n" if self.ground.secure else ""

    @property
    def database_url(self) -> str:
        """The manager's journal."""
        return self.ground.database_url or f"sqlite:///{self.manager_state / 'manager.db'}"

    async def _end(self, process: Installed, number: signal.Signals) -> None:
        """End a process; a SIGTERM that comes before Python is ready for it may still kill."""
        self.wanted_ends[process.name] = frozenset({-number, 0} if number is signal.SIGTERM else {-number})
        await process.end(number)

    async def kill_client(self, fault: Fault) -> None:
        await self._end(self.clients[fault.target], signal.SIGKILL)
        await asyncio.sleep(fault.lasts_s)
        self.clients[fault.target] = await self._start_client(fault.target)

    async def stop_client(self, fault: Fault) -> None:
        await self._end(self.clients[fault.target], signal.SIGTERM)
        await asyncio.sleep(fault.lasts_s)
        self.clients[fault.target] = await self._start_client(fault.target)

    async def lose_client(self, fault: Fault) -> None:
        """Its card was replaced: the same device without any memory."""
        await self._end(self.clients[fault.target], signal.SIGKILL)
        shutil.rmtree(self.client_state(fault.target), ignore_errors=True)  # it may have died before it wrote any
        self.lost_states.add(fault.target)
        self.clients[fault.target] = await self._start_client(fault.target)

    async def freeze_client(self, fault: Fault) -> None:
        await self._freeze(self.clients[fault.target].process.pid, fault.lasts_s)

    async def kill_training(self, fault: Fault) -> None:
        for child in _children(self.clients[fault.target].process.pid):
            child.kill()

    async def freeze_training(self, fault: Fault) -> None:
        for child in _children(self.clients[fault.target].process.pid)[:1]:
            await self._freeze(child.pid, fault.lasts_s)

    async def kill_manager(self, fault: Fault) -> None:
        assert self.manager is not None
        await self._end(self.manager, signal.SIGKILL)
        await asyncio.sleep(fault.lasts_s)
        self.manager = await self._start_manager()

    async def stop_manager(self, fault: Fault) -> None:
        assert self.manager is not None
        await self._end(self.manager, signal.SIGTERM)
        await asyncio.sleep(fault.lasts_s)
        self.manager = await self._start_manager()

    async def stop_runs(self, fault: Fault) -> None:
        """Somebody wants the run of now ended."""
        try:
            async with AsyncManagerClient(f"http://{self.manager_address}", timeout_s=3) as api:
                for run in await api.runs():
                    if run.outcome is None:
                        await api.stop(run.run_id, reason="enough")
        except ManagerClientError:
            pass  # the manager is down, or restarts and refuses

    async def freeze_manager(self, fault: Fault) -> None:
        assert self.manager is not None
        await self._freeze(self.manager.process.pid, fault.lasts_s)

    async def kill_server(self, fault: Fault) -> None:
        for server in self.servers():
            server.kill()

    async def freeze_server(self, fault: Fault) -> None:
        for server in self.servers()[:1]:
            await self._freeze(server.pid, fault.lasts_s)

    def _node(self, fault: Fault) -> Node:
        return self.ground.nodes[fault.target % len(self.ground.nodes)]

    async def kill_broker(self, fault: Fault) -> None:
        node = self._node(fault)
        await node.kill()
        await asyncio.sleep(fault.lasts_s)
        await node.start()

    async def restart_broker(self, fault: Fault) -> None:
        node = self._node(fault)
        assert isinstance(node, Mosquitto)
        await node.terminate()
        await asyncio.sleep(fault.lasts_s)
        await node.start()

    async def freeze_broker(self, fault: Fault) -> None:
        node = self._node(fault)
        node.pause()
        await asyncio.sleep(fault.lasts_s)
        node.resume()

    async def stop_database(self, fault: Fault) -> None:
        assert self.ground.postgres is not None
        await asyncio.to_thread(self.ground.postgres.stop)
        await asyncio.sleep(fault.lasts_s)
        await asyncio.to_thread(self.ground.postgres.start)

    async def freeze_database(self, fault: Fault) -> None:
        assert self.ground.postgres is not None
        await asyncio.to_thread(self.ground.postgres.freeze)
        await asyncio.sleep(fault.lasts_s)
        await asyncio.to_thread(self.ground.postgres.go_on)

    async def cut(self, fault: Fault) -> None:
        self._proxy(fault).cut()

    async def half_open(self, fault: Fault) -> None:
        await self._spoil(fault, FaultProxy.half_open)

    async def stall(self, fault: Fault) -> None:
        await self._spoil(fault, FaultProxy.stall)

    async def delay(self, fault: Fault) -> None:
        await self._spoil(fault, lambda proxy: setattr(proxy, "delay_s", 0.4))

    async def lose_pubacks(self, fault: Fault) -> None:
        await self._spoil(fault, lambda proxy: setattr(proxy, "loses_pubacks", True))

    async def replay(self, fault: Fault) -> None:
        """Somebody, or a broken bridge between brokers, says again what was said: old wills, triggers, statuses."""
        assert self.spy is not None
        await self.spy.replay(random.Random(fault.at_s), count=30)

    async def garbage(self, fault: Fault) -> None:
        assert self.spy is not None
        await self.spy.garbage(random.Random(fault.at_s), self.macs, count=100)

    def servers(self) -> list[psutil.Process]:
        """The FL servers that run now."""
        return [each for each in marked(self.yard.mark, "FEDOPS_TEST") if _runs(each, "fedops_mqtt.demo.server")]

    def trainings(self) -> list[psutil.Process]:
        """The training processes that run now."""
        return [each for each in marked(self.yard.mark, "FEDOPS_TEST") if _runs(each, "fedops_mqtt.training.process")]

    def _proxy(self, fault: Fault) -> FaultProxy:
        """One proxy in five is the manager's (and its FL server's)."""
        return self.manager_proxy if fault.lasts_s * 10 % 5 < 1 else self.proxies[fault.target]

    async def _spoil(self, fault: Fault, how: Callable[[FaultProxy], None]) -> None:
        proxy = self._proxy(fault)
        how(proxy)
        await asyncio.sleep(fault.lasts_s)
        proxy.heal()

    async def _freeze(self, pid: int, seconds: float) -> None:
        try:
            psutil.Process(pid).suspend()
            await asyncio.sleep(seconds)
            psutil.Process(pid).resume()
        except psutil.NoSuchProcess:
            pass


FAULTS: dict[str, tuple[int, Callable[[World, Fault], Awaitable[None]]]] = {
    "kill-client": (6, World.kill_client),
    "stop-client": (2, World.stop_client),
    "lose-client": (2, World.lose_client),
    "freeze-client": (3, World.freeze_client),
    "kill-training": (4, World.kill_training),
    "freeze-training": (2, World.freeze_training),
    "kill-manager": (4, World.kill_manager),
    "stop-manager": (1, World.stop_manager),
    "stop-runs": (1, World.stop_runs),
    "freeze-manager": (2, World.freeze_manager),
    "kill-server": (3, World.kill_server),
    "freeze-server": (1, World.freeze_server),
    "kill-broker": (3, World.kill_broker),
    "restart-broker": (2, World.restart_broker),
    "freeze-broker": (1, World.freeze_broker),
    "cut": (5, World.cut),
    "half-open": (3, World.half_open),
    "stall": (3, World.stall),
    "delay": (3, World.delay),
    "lose-pubacks": (3, World.lose_pubacks),
    "replay": (3, World.replay),
    "garbage": (2, World.garbage),
}
"""What may happen: how often in relation to the others, and how."""

_NOT_BEHIND_TLS = frozenset({"restart-broker", "lose-pubacks", "replay", "garbage"})
"""A proxy cannot look into TLS, and strangers cannot speak there."""
FAULTS_OF = {
    "single": FAULTS,
    **{name: {kind: fault for kind, fault in FAULTS.items() if kind not in _NOT_BEHIND_TLS} for name in PROFILES},
    "postgres": {**FAULTS, "stop-database": (4, World.stop_database), "freeze-database": (4, World.freeze_database)},
}
"""By profile."""


def _target_of(fault: Fault) -> str:
    kind, _, whom = fault.kind.partition("-")
    if whom == "database":
        return "manager"  # one that starts without its database ends; who restarts it is not here
    if whom in ("manager", "server", "broker"):
        return whom
    return f"{whom or kind}-{fault.target}" if whom != "training" else f"client-{fault.target}"


YEARS_AHEAD_MS = 4_000_000_000_000
"""An epoch of the year 2096."""


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


def _runs(process: psutil.Process, module: str) -> bool:
    try:
        return module in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@asynccontextmanager
async def living(folder: Path, *, num_clients: int, profile: str = "single") -> AsyncIterator[World]:
    """Start a world in `folder` and clear it up."""
    async with AsyncExitStack() as stack:
        ground = await stack.enter_async_context(_ground(folder, profile, macs_of(num_clients)))
        proxies = [
            await stack.enter_async_context(
                FaultProxy(ground.host, ground.port, is_mqtt=ground.secure is None).running()
            )
            for _ in range(num_clients + 1)
        ]
        yard = Yard(folder)
        stack.push_async_callback(yard.clear_up)
        spy = None
        if ground.secure is None:
            spy = await stack.enter_async_context(spying(f"mqtt://{ground.host}:{ground.port}", TASK))
        world = World(yard, ground, spy, proxies)
        await world.start()
        yield world


def macs_of(num_clients: int) -> list[str]:
    return [f"02:00:00:00:0c:{number:02x}" for number in range(1, num_clients + 1)]


@asynccontextmanager
async def _ground(folder: Path, profile: str, macs: Sequence[str]) -> AsyncIterator[Ground]:
    if profile in PROFILES:

        def enrol(fleet: FleetFolder) -> None:
            enrol_task(fleet, TASK, macs, app="fedops_mqtt.demo:client_app", server=SERVER)

        async with PROFILES[profile](folder / "brokers", enrol) as brokers:
            port = brokers.fleet.register.ports.certificate
            settings: dict[str, object] = {"subscribe_qos": 0} if profile == "cluster" else {}
            secure = SecureSite(brokers.fleet, None)  # type: ignore[arg-type]
            yield Ground(nodes=[*brokers.nodes.values()], host=HOST, port=port, secure=secure, settings=settings)
        return
    data = folder / "broker"
    data.mkdir()
    async with Mosquitto(port=free_port(), data_dir=data) as broker:
        ground = Ground(nodes=[broker], host=broker.host, port=broker.port)
        if profile != "postgres":
            yield ground
            return
        with Postgres() as postgres:
            yield replace(ground, postgres=postgres, database_url=postgres.new_database())
