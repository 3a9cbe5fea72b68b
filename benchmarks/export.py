"""What an export costs everybody else: `python benchmarks/export.py [--rows 1000000] [--clients 200] [--turns 20]`.

A manager whose journal has that many numbers of one run. A server announces runs, the manager triggers every client,
while a download of all the numbers goes on and while it is held: turn by turn within one export, so that other work on
the machine hits both. Beside it: how late the manager's heartbeats came, and how long `/health` took.
"""

import argparse
import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import httpx
import psutil
from bench_processes import MIB, Processes, end_on_sigterm, figure, free_port, machine, save_json, table
from fleet_clients import TASK, SimulatedFleet
from sqlalchemy import insert

from fedops_mqtt.bus import Connection, Mosquitto, Received
from fedops_mqtt.core.run import Run, RunSpec
from fedops_mqtt.core.run_plan import RunOutcome
from fedops_mqtt.manager import tables
from fedops_mqtt.manager.journal import Journal, JournaledRun
from fedops_mqtt.protocol import Channel, ClientCondition, ManagerStatus, ServerStatus, filter_for, topics, utc_now

BIG_RUN = "big"
HEARTBEAT_S = 0.5
LIMIT_S = 300.0
POLL_S = 0.01
HEALTH_EVERY_S = 0.05
MAX_RATIO = 1.5
_AT_A_TIME = 20_000


@dataclass
class Side:
    """What was measured while the export went on, or while it did not."""

    triggers_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        named = {"trigger": self.triggers_s, "health": self.health_s, "heartbeat late": self.late_s}
        return {
            f"{name} {part}": value
            for name, taken in named.items()
            for part, value in (("p50", median(taken)), ("p99", sorted(taken)[len(taken) * 99 // 100]))
        }


_READ = """
import shutil, sys, urllib.request
with urllib.request.urlopen(sys.argv[1]) as answer, open(sys.argv[2], "wb") as file:
    shutil.copyfileobj(answer, file)
"""


class Download:
    """Reads the export in a process of its own, unless it is held; the sockets between hold a few MB more."""

    def __init__(self, url: str, file: Path) -> None:
        self._file = file
        self._process = subprocess.Popen([sys.executable, "-c", _READ, url, str(file)])
        self.hold()

    def hold(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    @property
    def num_bytes(self) -> int:
        return self._file.stat().st_size

    def finish(self) -> int:
        """Read to the end; return how many lines there were."""
        self.go_on()
        if self._process.wait() != 0:
            raise RuntimeError("the export broke off")
        return sum(1 for _ in self._file.open("rb"))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Listener:
    """Notes when the manager's heartbeats came and how long `/health` took, for the side that is on."""

    def __init__(self) -> None:
        self.side = Side()
        self.heard_at: list[float] = []

    async def read(self, connection: Connection) -> None:
        while True:
            for event in await connection.drain():
                if isinstance(event, Received) and isinstance(event.message, ManagerStatus):
                    self.heard_at.append(time.monotonic())

    async def ask(self, http: httpx.AsyncClient) -> None:
        while True:
            began = time.monotonic()
            await http.get("/api/v1/health")
            self.side.health_s.append(time.monotonic() - began)
            await asyncio.sleep(HEALTH_EVERY_S)


def main() -> None:
    options, about = parse(), machine()
    end_on_sigterm()
    result = asyncio.run(measure(options))
    print(f"machine: {about}\n{report(options, result)}")
    save_json(options.json, {"machine": about, **result})


async def measure(options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory(prefix="export-bench-", dir=options.folder) as place:
        folder = Path(place)
        url = options.database or f"sqlite:///{folder / 'manager.db'}"
        fill(url, options.rows)
        print(f"... {options.rows} rows are written", flush=True)
        async with Mosquitto() as broker, managing(broker.url, folder, url) as (http, connection, pid):
            fleet = SimulatedFleet(options.clients)
            await fleet.come_online(broker.host, broker.port)
            await until_online(http, options.clients)
            return await take_turns(options, fleet, http, connection, psutil.Process(pid), folder / "metrics.csv")


def fill(url: str, num_rows: int) -> None:
    """Write down a run that has ended, and what its clients measured."""
    run = Run(
        spec=RunSpec(run_id=BIG_RUN, task_id=TASK, num_rounds=1, min_clients=1),
        created_at=time.time(), ended_at=time.time(), outcome=RunOutcome.COMPLETED,
    )  # fmt: skip
    with Journal(url) as journal:
        journal.add_run(JournaledRun(run=run, secret=b""))
        journal.archive(BIG_RUN)
        for rows in measurements(num_rows):
            with journal.engine.begin() as connection:
                connection.execute(insert(tables.client_metrics), rows)


def measurements(num_rows: int) -> Iterator[list[dict]]:
    for first in range(0, num_rows, _AT_A_TIME):
        yield [
            {
                "at": time.time(),
                "run_id": BIG_RUN,
                "task_id": TASK,
                "client_mac": f"02:00:00:00:{number // 256 % 256:02x}:{number % 256:02x}",
                "kind": "round",
                "round": number // 1000,
                "values": {"loss": 1 / (1 + number), "accuracy": 0.5, "seconds": 1.25, "num_examples": 600},
            }
            for number in range(first, min(first + _AT_A_TIME, num_rows))
        ]


@asynccontextmanager
async def managing(
    broker: str, folder: Path, database: str
) -> AsyncIterator[tuple[httpx.AsyncClient, Connection, int]]:
    """A manager that adopts runs, asked over HTTP and heard on the bus."""
    tasks = folder / "tasks.toml"
    tasks.write_text(f"[tasks.{TASK}]\nadopt = true\nmin_clients = 2\n")
    port = free_port()
    env = {
        "FEDOPS_MQTT_BROKER": broker,
        "FEDOPS_MQTT_TASKS_FILE": str(tasks),
        "FEDOPS_MQTT_HTTP": f"127.0.0.1:{port}",
        "FEDOPS_MQTT_STATE_DIR": str(folder / "state"),
        "FEDOPS_MQTT_DATABASE_URL": database,
        "FEDOPS_MQTT_HEARTBEAT_S": str(HEARTBEAT_S),
    }
    with Processes(folder) as processes:
        manager = processes.module("fedops_mqtt.cli", "manager", name="manager", env=env)
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S, trust_env=False) as http,
            Connection(broker, subscriptions=[filter_for(Channel.MANAGER_STATUS)]) as connection,
        ):
            await connection.wait_first_try()
            end = time.monotonic() + LIMIT_S
            while not await is_up(http):
                processes.check()
                if time.monotonic() > end:
                    raise TimeoutError("the manager is not there")
                await asyncio.sleep(0.1)
            yield http, connection, manager.pid


async def is_up(http: httpx.AsyncClient) -> bool:
    try:
        return "fedops_broker_connected 1.0" in (await http.get("/metrics")).text
    except httpx.TransportError:
        return False


async def until_online(http: httpx.AsyncClient, num_clients: int) -> None:
    while (await http.get("/api/v1/health")).json()["num_clients"] != num_clients:  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def take_turns(
    options: argparse.Namespace, fleet: SimulatedFleet, http: httpx.AsyncClient, connection: Connection,
    manager: psutil.Process, file: Path,
) -> dict:  # fmt: skip
    sides = {"without": Side(), "during": Side()}
    listener, server = Listener(), StatusOnlyServer(connection)
    for _ in range(2):  # the first of a process pays for imports
        await server.one_run(fleet)
    download = Download(f"{http.base_url}/api/v1/runs/{BIG_RUN}/metrics.csv", file)
    async with asyncio.TaskGroup() as group:
        listening = [group.create_task(listener.read(connection)), group.create_task(listener.ask(http))]
        used, began, turns = cpu_of(manager), time.monotonic(), 0
        try:
            while not download.is_over and turns < options.turns:
                for name, side in sides.items():
                    (download.go_on if name == "during" else download.hold)()
                    await asyncio.sleep(options.settle_s)
                    await one_turn(options, listener, server, fleet, side)
                turns += 1
            if options.whole and (found := await asyncio.to_thread(download.finish)) != options.rows + 1:
                raise AssertionError(f"the export had {found} lines")
        finally:
            download.end()
        for task in listening:
            task.cancel()
    return {
        "sides": {name: side.figures() for name, side in sides.items()},
        "num_triggers": {name: len(side.triggers_s) for name, side in sides.items()},
        "turns": turns,
        "export_mb": download.num_bytes / 1e6,
        "manager_cpu_s": cpu_of(manager) - used,
        "seconds": time.monotonic() - began,
        "manager_mib": manager.memory_info().rss / MIB,
    }


async def one_turn(
    options: argparse.Namespace, listener: Listener, server: "StatusOnlyServer", fleet: SimulatedFleet, side: Side
) -> None:
    listener.side, began = side, time.monotonic()
    for _ in range(options.runs):
        side.triggers_s += await server.one_run(fleet)
    listener.side = Side()
    heard = [at for at in listener.heard_at if at >= began]
    side.late_s += [max(0.0, later - at - HEARTBEAT_S) for at, later in pairwise(heard)]


def cpu_of(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system + used.children_user + used.children_system


class StatusOnlyServer:
    """An FL server by its statuses alone: each run is announced, triggered, and over."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._seq = 0
        self._epoch = time.time_ns() // 1_000_000

    async def publish_status(self, number: int, status: str) -> None:
        self._seq += 1
        await self._connection.publish(
            topics.server_status(TASK),
            ServerStatus(
                instance="bench", epoch=self._epoch, seq=self._seq, at=utc_now(), heartbeat_s=600, task_id=TASK,
                status=status, run_id=f"bench-{number}", launch=0, server_ip="127.0.0.1:1",
            ),
        )  # fmt: skip

    async def one_run(self, fleet: SimulatedFleet) -> list[float]:
        """Announce a run, return the seconds until each client was triggered, and end it."""
        for client in fleet.clients:
            client.triggered_at = None
        number, fired_at = self._seq, time.monotonic()
        await self.publish_status(number, "ready")
        while any(client.triggered_at is None for client in fleet.clients):
            if time.monotonic() - fired_at > LIMIT_S:
                raise TimeoutError("not every client was triggered")
            await asyncio.sleep(POLL_S)
        delays = fleet.trigger_delays(fired_at)
        over = {"run_id": f"bench-{number}", "attempt": 1, "outcome": "finished"}
        await self.publish_status(number, "finished")
        for client in fleet.clients:
            await client.publish_status(ClientCondition.ONLINE, last_run=over)
        await asyncio.sleep(0.5)
        return delays


def report(options: argparse.Namespace, result: dict) -> str:
    without, during = result["sides"]["without"], result["sides"]["during"]
    rows = []
    for name, value in without.items():
        ratio = during[name] / value if value else None
        wanted, holds = "", ""
        if name == "trigger p99" and ratio is not None:
            wanted, holds = f"at most {MAX_RATIO:g}", "yes" if ratio <= MAX_RATIO else "NO"
        times = (figure(each * 1000) for each in (value, during[name]))
        rows.append((f"{name}, ms", *times, figure(ratio), wanted, holds))
    head = (f"{options.clients} clients, {options.rows} rows", "without", "during", "ratio", "wanted", "holds")
    facts = ", ".join(f"{name} {figure(result[name])}" for name in FACTS)
    return f"\n{table(head, rows)}\n\n{facts}\n"


FACTS = ("turns", "seconds", "export_mb", "manager_cpu_s", "manager_mib")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the run that is exported")
    parser.add_argument("--clients", type=int, default=200, help="clients that are triggered")
    parser.add_argument("--turns", type=int, default=8, help="turns of each side, at most")
    parser.add_argument("--runs", type=int, default=3, help="runs within a turn")
    parser.add_argument("--settle-s", type=float, default=1.0, help="until a held download has filled the sockets")
    parser.add_argument("--whole", action="store_true", help="read the export to its end, and count its rows")
    parser.add_argument("--database", help="URL of an empty PostgreSQL database instead of SQLite")
    parser.add_argument("--folder", type=Path, help="where the journal is for the time being")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
