"""A whole site on several broker nodes: every process with nothing but its bundle, and what must hold in a fault."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
import numpy as np
from device_plan import DevicePlan
from line_site import model_of, start_with_all
from nodes import Brokers, Node
from reader import RETRY_S, Json, Observer
from secure_site import HOST, SecureSite
from yard import HERE, Installed, Site, Yard

from fedops_mqtt.bus.address import make_tls_context, parse_broker_url
from fedops_mqtt.enrolment import EnrolmentRequest, FleetFolder, Role
from fedops_mqtt.protocol import RunOutcome

TASK = "digits"
SERVER = "server-digits"
SCREENS = ("screen-a", "screen-b")
"""Readers: one is there from the start, one is a newcomer."""
MACS = tuple(f"02:00:00:00:01:{number:02x}" for number in range(1, 4))
HEARTBEAT_S = 5
FREEZE_S = 40
_BEGINS = re.compile(r"a training process begins run_id=(\S+) attempt=(\d+)")


class ClusterSite(Site):
    """A site whose processes are enrolled; `secure` has their bundles."""

    def __init__(self, yard: Yard, brokers: Brokers, observer: Observer, **settings: object) -> None:
        self.secure = SecureSite(brokers.fleet, None)  # type: ignore[arg-type]
        super().__init__(yard, self.secure.url("manager"), TASK, observer)
        self.brokers = brokers
        self.device_plan = DevicePlan(yard.folder)
        self.num_rounds = 0
        self.settings = {"heartbeat_s": HEARTBEAT_S, "keepalive_s": 5, "backoff_max_s": 2, **settings}

    async def start_client(self, mac: str, app: str = "steered:app", **settings: object) -> Installed:
        config = str(self.secure.bundle(mac))
        folder = self.yard.folder / "devices"
        return await self.yard.start(
            "client", "--config", config, app=app, state_dir=folder, **self.settings | settings
        )

    async def launch_manager(self, tasks: Path, *program: str, **settings: object) -> Installed:
        given = {"http": "127.0.0.1:0", "state_dir": self.yard.folder / "manager", "store": self.yard.folder / "models"}
        more = {"PYTHONPATH": str(HERE / "without_page")}
        config = ("--config", str(self.secure.bundle("manager")), "--tasks", str(tasks))
        return await self.yard.start(*program, "manager", *config, environment=more, **given | self.settings | settings)

    async def start_all(self) -> dict[str, Installed]:
        """Start a manager, and the devices of the fleet."""
        limits = f"[tasks.{TASK}.limits]\ntrigger_retry_s = 2\nserver_lost_s = 60\ntrigger_answer_s = 120"
        server = f"config = {str(self.secure.bundle(SERVER))!r}"
        await self.start_manager(module="line_program", server_args=["--numbers", "3", "--min-clients", "3"],
                                 more=f"{server}\n{limits}")  # fmt: skip
        return await self.start_clients(len(MACS), "steered:app")

    async def begin_run(self, clients: Iterable[str], num_rounds: int = 2) -> str:
        """Start a run in whose first round every device computes until `finish_run`."""
        return await start_with_all(self, self.device_plan, clients, num_rounds=num_rounds, min_clients=len(MACS))

    async def finish_run(self, run_id: str, num_rounds: int = 2) -> Json:
        """Let a run go on to its end: completed, with each device's share in the model once for each round so far."""
        self.device_plan.write({})
        run = await self.observer.until_ended(run_id)
        assert (run.outcome, run.round) == (RunOutcome.COMPLETED, num_rounds), run
        self.num_rounds += num_rounds
        assert np.allclose(model_of(run), self.num_rounds), model_of(run)
        assert {each["status"] for each in run.clients.values()} == {"finished"}, run.clients
        return run

    async def until_present(self, screen: Observer, since: datetime) -> None:
        """Wait until a reader knows each device by a status of after `since`, and none as out."""

        def knows_all() -> bool:
            said = {mac: found.status for mac, found in screen.clients.items() if not found.is_out}
            return all(mac in said and datetime.fromisoformat(said[mac].at) >= since for mac in MACS)

        await screen.until(knows_all)

    async def check_presence(self, since: datetime) -> None:
        """What the old reader and a newcomer read of after `since` is right in the end."""
        async with reading(self.secure, SCREENS[1]) as newcomer, asyncio.TaskGroup() as group:
            for screen in (self.observer, newcomer):
                group.create_task(self.until_present(screen, since))


def trained_twice(clients: dict[str, Installed]) -> list[tuple[str, str, str]]:
    """Return each (client, run, attempt) that was trained more than once."""
    begun = Counter((mac, *found) for mac, client in clients.items() for found in _BEGINS.findall(client.stderr))
    assert begun
    return [each for each, times in begun.items() if times > 1]


@asynccontextmanager
async def killed(node: Node) -> AsyncIterator[None]:
    """A node that is dead while the block runs, and comes back with its disk."""
    await node.kill()
    yield
    await node.start()


@asynccontextmanager
async def frozen(node: Node) -> AsyncIterator[None]:
    """A node that stands still while the block runs, and for `FREEZE_S` at least."""
    node.pause()
    thawed_at = asyncio.get_running_loop().time() + FREEZE_S
    try:
        yield
        await asyncio.sleep(thawed_at - asyncio.get_running_loop().time())
    finally:
        node.resume()


FAULTS = {"killed": killed, "frozen": frozen}


def enrol_everybody(fleet: FleetFolder) -> None:
    """Enrol devices, FL server and readers of the tests' task."""
    enrol_task(fleet, TASK, MACS, app="steered:app", server=SERVER)


def enrol_task(fleet: FleetFolder, task_id: str, macs: Iterable[str], *, app: str, server: str) -> None:
    """Enrol a task's devices, its FL server, and readers."""
    everybody = [EnrolmentRequest(role=Role.DEVICE, name=mac, tasks=[task_id], app=app) for mac in macs]
    everybody += [EnrolmentRequest(role=Role.DASHBOARD, name=name) for name in SCREENS]
    everybody.append(EnrolmentRequest(role=Role.SERVER, name=server, tasks=[task_id], hosts=[HOST]))
    fleet.enrol_all(everybody)


@asynccontextmanager
async def site_on(yard: Yard, brokers: Brokers, **settings: object) -> AsyncIterator[ClusterSite]:
    """A site on these brokers, whose fleet has everybody enrolled; `settings` are every process's."""
    secure = SecureSite(brokers.fleet, None)  # type: ignore[arg-type]
    async with reading(secure, SCREENS[0]) as observer:
        yield ClusterSite(yard, brokers, observer, **settings)


@asynccontextmanager
async def reading(secure: SecureSite, name: str, task_id: str = TASK) -> AsyncIterator[Observer]:
    """An outsider's view of the task as somebody enrolled, over every loss of the connection."""
    observer = Observer(task_id, 300.0)
    address, options = parse_broker_url(secure.url(name)), secure.options(name)

    async def read() -> None:
        while True:
            bus = secure.bare_client(
                name, version=aiomqtt.ProtocolVersion.V311, port=address.port, keepalive=5, timeout=5,  # and once more
                tls_context=make_tls_context(address, options),  # paho forgets sockets whose handshake fails
            )  # fmt: skip
            try:
                async with bus:
                    for channel in ("clients/+/status", "server/#", "runs/+"):
                        await bus.subscribe(f"fedops/v1/{task_id}/{channel}", qos=0)
                    await bus.subscribe("fedops/v1/manager/status", qos=0)
                    async for message in bus.messages:
                        observer.take(str(message.topic), bytes(message.payload or b""))  # type: ignore[arg-type]
            except aiomqtt.MqttError:
                await asyncio.sleep(RETRY_S)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(read(), name=f"reader-{name}")
        try:
            yield observer
        finally:
            task.cancel()


def now() -> datetime:
    return datetime.now(UTC)
