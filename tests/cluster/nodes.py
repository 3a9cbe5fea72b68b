"""Broker nodes of a test as processes, behind the shipped haproxy configuration: each can be killed and frozen."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import psutil
from ports import free_port
from secure_site import HOST

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.bus.mosquitto import find_config, listener_ports
from fedops_mqtt.enrolment import EnrolmentRequest, FleetFolder, Ports, Role, init_fleet

START_S = 300.0
POLL_S = 0.05
PROBE = "haproxy-a"


class Node(Protocol):
    """A process that a fault befalls."""

    async def start(self) -> None:
        """Start it, or start it again with what it has on its disk."""

    async def kill(self) -> None:
        """SIGKILL."""

    def pause(self) -> None:
        """SIGSTOP."""

    def resume(self) -> None:
        """SIGCONT."""


class Program:
    """Any program as a node; `is_ready` tells, some time after its start, that it can be used."""

    def __init__(
        self,
        *command: str | Path,
        log: Path,
        is_ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = [str(word) for word in command]
        self._log = log
        self.folder = log.parent
        self._is_ready = is_ready
        self._environment = {**os.environ, **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
        async with asyncio.timeout(START_S):
            while not await asyncio.to_thread(self._is_ready):
                assert self._process.returncode is None, self._log.read_text(errors="replace")[-2000:]
                await asyncio.sleep(POLL_S)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


@dataclass(frozen=True, kw_only=True)
class Brokers:
    """Nodes with a proxy before them, and the fleet whose bundles lead to the proxy."""

    fleet: FleetFolder
    nodes: dict[str, Node]
    urls: str
    """Of the nodes themselves, in the form of `--broker`, for who does without the proxy."""


Enrol = Callable[[FleetFolder], None]


def make_fleet(folder: Path, enrol: Enrol) -> FleetFolder:
    """A fleet with whoever `enrol` adds; its ports are the proxy's."""
    ports = Ports(certificate=free_port(), password=free_port(), websockets=free_port())
    fleet = init_fleet(folder, hosts=[HOST], shipped=find_config("mosquitto.conf").parent, ports=ports)
    fleet.enrol(EnrolmentRequest(role=Role.DASHBOARD, name=PROBE))
    enrol(fleet)
    return fleet


@asynccontextmanager
async def pair(folder: Path, enrol: Enrol) -> AsyncIterator[Brokers]:
    """Two mosquittos that know nothing of each other, a before b."""
    fleet = make_fleet(folder / "fleet", enrol)
    bundle = fleet.folder / "bundles" / PROBE
    (folder / "probe.pem").write_bytes((bundle / "client.crt").read_bytes() + (bundle / "client.key").read_bytes())
    shutil.copy(fleet.folder / "ca.crt", folder)
    proxy = _proxy_config("pair", fleet)
    async with AsyncExitStack() as stack:
        nodes: dict[str, Mosquitto] = {}
        for number, name in ((11, "a"), (12, "b")):
            shutil.copytree(fleet.broker_folder, folder / name)
            config = folder / name / "mosquitto.conf"
            text = config.read_text().replace(str(fleet.broker_folder.resolve()), str((folder / name).resolve()))
            for port in listener_ports(text):
                own = free_port()
                text = text.replace(f"\nlistener {port}\n", f"\nlistener {own} {HOST}\n")
                shipped = {fleet.register.ports.certificate: 8883, fleet.register.ports.password: 8884}.get(port, 9001)
                proxy = proxy.replace(f"192.0.2.{number}:{shipped} ", f"{HOST}:{own} ")
            config.write_text(text)
            nodes[name] = await stack.enter_async_context(Mosquitto(config=config, data_dir=folder / name / "data"))
        await stack.enter_async_context(_proxy(folder, fleet, proxy.replace("/etc/haproxy/fedops/", f"{folder}/")))
        urls = ",".join(node.url for node in nodes.values())
        yield Brokers(fleet=fleet, nodes=dict(nodes), urls=urls)


@asynccontextmanager
async def cluster(folder: Path, enrol: Enrol) -> AsyncIterator[Brokers]:
    """Three NATS servers that are one broker."""
    fleet = make_fleet(folder / "fleet", enrol)
    fleet.write_nats(find_config("ha/cluster/nats.conf").read_text())
    names = {11: "a", 12: "b", 13: "c"}
    routes = {number: free_port() for number in names}
    proxy, urls = _proxy_config("cluster", fleet), []
    async with AsyncExitStack() as stack:
        nodes: dict[str, Node] = {}
        for number, name in names.items():
            own = folder / name
            shutil.copytree(fleet.broker_folder, own)
            mqtt, monitor = free_port(), free_port()
            text = (own / "nats.conf").read_text().replace("/etc/nats/fedops/", f"{own}/")
            for shipped, used in {
                "127.0.0.1:4222": f"{HOST}:{free_port()}",
                "0.0.0.0:8222": f"{HOST}:{monitor}",
                "0.0.0.0:8883": f"{HOST}:{mqtt}",
                "0.0.0.0:6222": f"{HOST}:{routes[number]}",
                "/var/lib/nats/fedops": str(own / "data"),
                **{f"192.0.2.{each}:6222": f"{HOST}:{port}" for each, port in routes.items()},
            }.items():
                text = text.replace(shipped, used)
            (own / "nats.conf").write_text(text)
            proxy = proxy.replace(f"192.0.2.{number}:8883 check", f"{HOST}:{mqtt} check port {monitor}")
            urls.append(f"mqtts://{HOST}:{mqtt}")
            nodes[name] = nats_node(own, name, monitor)
            stack.push_async_callback(nodes[name].kill)
        async with asyncio.TaskGroup() as group:
            for node in nodes.values():
                group.create_task(node.start())
        await stack.enter_async_context(_proxy(folder, fleet, proxy))
        yield Brokers(fleet=fleet, nodes=nodes, urls=",".join(urls))


def nats_node(folder: Path, name: str, monitor: int) -> Program:
    program = shutil.which("nats-server", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program is not None, "make test-cluster installs nats-server"

    def is_healthy() -> bool:
        try:
            # Asked again: a node without its peers may leave a request without an answer.
            return httpx.get(f"http://{HOST}:{monitor}/healthz", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    environment = {"NATS_NAME": name}
    return Program(
        program, "-c", folder / "nats.conf", log=folder / "log", is_ready=is_healthy, environment=environment
    )


def _proxy_config(profile: str, fleet: FleetFolder) -> str:
    """The shipped configuration, listening on the fleet's ports."""
    text = find_config(f"ha/{profile}/haproxy.cfg").read_text().replace("maxconn 20000", "maxconn 500")
    ports = fleet.register.ports
    for shipped, used in ((8883, ports.certificate), (8884, ports.password), (9001, ports.websockets)):
        text = text.replace(f"bind :{shipped}\n", f"bind {HOST}:{used}\n")
    return text


@asynccontextmanager
async def _proxy(folder: Path, fleet: FleetFolder, text: str) -> AsyncIterator[None]:
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "make test-cluster installs haproxy"
    assert "192.0.2." not in text
    (folder / "haproxy.cfg").write_text(text)

    def is_open() -> bool:
        """Tell whether this very process listens: somebody else may have taken the port."""
        sockets = psutil.Process(proxy.pid).net_connections("tcp")
        return any(each.laddr.port == fleet.register.ports.certificate for each in sockets if each.status == "LISTEN")

    proxy = Program(program, "-db", "-f", folder / "haproxy.cfg", log=folder / "haproxy.log", is_ready=is_open)
    await proxy.start()
    try:
        yield
    finally:
        await proxy.kill()


PROFILES = {"pair": pair, "cluster": cluster}
