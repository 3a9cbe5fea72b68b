"""What a fleet of thousands costs: `python benchmarks/fleet.py [--sizes 1000 5000] [--times 3] [--json FILE]`.

One mosquitto with the development configuration, simulated clients in this process, and one reader in a process of its
own: first the floor (a bare aiomqtt client), then the manager. A ratio is manager / floor in the same run.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import httpx
import psutil
from bench_processes import MIB, Processes, end_on_sigterm, figure, free_port, machine, save_json, table
from fleet_clients import TASK, SimulatedFleet

from fedops_mqtt.bus import Connection, Mosquitto
from fedops_mqtt.protocol import ServerStatus, topics, utc_now

NUM_NEWCOMERS = 3
STATUSES_EACH = 4
"""Published by every client in the measurement of intake."""
LIMIT_S = 120.0
POLL_S = 0.1
"""Between two questions to the manager, which cost it some milliseconds each; it says itself when it knew."""
NUM_FILES = 20_000
"""File descriptors: one a client here and one in the broker."""


def main() -> None:
    options = parse()
    end_on_sigterm()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < NUM_FILES and hard > 0 else NUM_FILES, hard))
    result: dict = {"machine": machine(), "sizes": {}}
    for size in options.sizes:
        result["sizes"][size] = medians([asyncio.run(measure(size)) for _ in range(options.times)])
        print(report(size, result["sizes"][size]), flush=True)
    print(growth(result["sizes"]))
    save_json(options.json, result)


async def measure(size: int) -> dict:
    """Measure floor and manager, each with a broker of its own."""
    taken: dict = {}
    for name, reading in (("floor", floor_reader), ("manager", manager_reader)):
        print(f"... {size} clients: {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="fleet-bench-") as place:
            async with Mosquitto() as broker, reading(broker, Path(place), size) as reader:
                taken[name] = await life_of_a_fleet(broker, reader, size)
    return taken


def medians(lives: list[dict]) -> dict:
    """Return the median of each figure; floor and manager took turns, so other work on the machine hit both."""
    return {
        name: {key: median(life[name][key] for life in lives) for key in figures} for name, figures in lives[0].items()
    }


async def life_of_a_fleet(broker: Mosquitto, reader: "FloorReader | ManagerReader", size: int) -> dict:
    """Bring all online, have them talk, trigger them, kill them as they train; return the seconds until it is known."""
    fleet, taken = SimulatedFleet(size), {}
    at_first, broker_at_first = reader.costs(), costs_of(broker.pid)
    began = time.monotonic()
    await fleet.come_online(broker.host, broker.port)
    taken["connected_s"] = time.monotonic() - began
    taken["online_s"] = await reader.until_all("online") - began
    broker_costs = costs_of(broker.pid)
    taken |= {
        f"broker_{name}_each": (broker_costs[name] - broker_at_first[name]) / size * 1000 for name in broker_costs
    }
    taken["watch_s"] = median([await newcomer_time(reader.newcomer, broker.url, size) for _ in range(NUM_NEWCOMERS)])
    began = time.monotonic()
    await fleet.say_many(STATUSES_EACH)
    taken["intake_per_s"] = STATUSES_EACH * size / (await reader.until_all("train-finished") - began)
    fired_at = await reader.fire()
    taken["answers_s"] = await reader.until_all("train-started") - fired_at
    delays = fleet.trigger_delays(fired_at)
    taken["trigger_p50_s"], taken["trigger_p99_s"] = delays[size // 2], delays[size * 99 // 100]
    began = time.monotonic()
    fleet.die()
    taken["out_s"] = await reader.until_all("client-out") - began
    costs = reader.costs()
    grown = {f"{name}_each": (costs[name] - at_first[name]) / size * 1000 for name in costs}
    return taken | costs | grown


class FloorReader:
    """The bare aiomqtt process; beside it a bare newcomer."""

    newcomer = "newcomer"

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._seen: dict[str, float] = {}

    async def until_all(self, status: str) -> float:
        """Return when it had all clients in this status."""
        while status not in self._seen:
            told = json.loads(await asyncio.wait_for(self._process.stdout.readline(), LIMIT_S))
            self._seen[told["all"]] = told["at"]
        return self._seen[status]

    async def fire(self) -> float:
        fired_at = time.monotonic()
        self._process.stdin.write(b"fire\n")
        return fired_at

    def costs(self) -> dict:
        return costs_of(self._process.pid)


@asynccontextmanager
async def floor_reader(broker: Mosquitto, folder: Path, size: int):
    async with reader_process("floor", broker.url, size) as process:
        yield FloorReader(process)


@asynccontextmanager
async def reader_process(role: str, url: str, size: int):
    """A program of fleet_reader.py that is connected."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("fleet_reader.py")), role, url, str(size)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        await asyncio.wait_for(process.stdout.readline(), LIMIT_S)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def newcomer_time(role: str, url: str, size: int) -> float:
    """Return the seconds from connected to a fleet that is whole, for a newcomer."""
    async with reader_process(role, url, size) as process:
        began = time.monotonic()
        told = json.loads(await asyncio.wait_for(process.stdout.readline(), LIMIT_S))
    return max(0.0, told["at"] - began)


class ManagerReader:
    """`fedops-mqtt manager`, asked what it knows as Prometheus asks; fired by a server that announces itself.

    Beside it a newcomer with our own `watch`.
    """

    newcomer = "watch"

    def __init__(self, http: httpx.AsyncClient, connection: Connection, pid: int, size: int) -> None:
        self._http, self._connection, self._pid, self._size = http, connection, pid, size

    async def until_all(self, status: str) -> float:
        end = time.monotonic() + LIMIT_S
        while (told := await self._ask(status))[0] < self._size:
            if time.monotonic() > end:
                raise TimeoutError(f"the manager has {told[0]} of {self._size} clients {status}")
            await asyncio.sleep(POLL_S)
        return told[1] - (time.time() - time.monotonic())

    async def fire(self) -> float:
        """Have a server announce a run: the manager adopts it and triggers everybody."""
        fired_at = time.monotonic()
        await self._connection.publish(
            topics.server_status(TASK),
            ServerStatus(
                instance="bench", epoch=time.time_ns() // 1_000_000, seq=1, at=utc_now(), heartbeat_s=600,
                status="ready", task_id=TASK, run_id="bench", launch=0, server_ip="127.0.0.1:1",
            ),
        )  # fmt: skip
        return fired_at

    def costs(self) -> dict:
        return costs_of(self._pid)

    async def _ask(self, status: str) -> tuple[int, float]:
        """Return how many clients are in this status, and when the last of all moved, s since 1970."""
        count, moved_at = 0, 0.0
        for line in (await self._http.get("/metrics")).text.splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith("fedops_clients{") and f'status="{status}"' in name:
                count += int(float(value))
            elif name == "fedops_clients_moved_seconds":
                moved_at = float(value)
        return count, moved_at


@asynccontextmanager
async def manager_reader(broker: Mosquitto, folder: Path, size: int):
    """A manager that adopts the fleet's run, connected."""
    tasks = folder / "tasks.toml"
    tasks.write_text(f"[tasks.{TASK}]\nadopt = true\nmin_clients = 2\n")
    port = free_port()
    env = {
        "FEDOPS_MQTT_BROKER": broker.url,
        "FEDOPS_MQTT_TASKS_FILE": str(tasks),
        "FEDOPS_MQTT_HTTP": f"127.0.0.1:{port}",
        "FEDOPS_MQTT_STATE_DIR": str(folder / "state"),
    }
    with Processes(folder) as processes:
        manager = processes.module("fedops_mqtt.cli", "manager", name="manager", env=env)
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as http,
            Connection(broker.url) as connection,
        ):
            await connection.wait_first_try()
            await connection.drain()
            await _until_connected(http, processes)
            yield ManagerReader(http, connection, manager.pid, size)


async def _until_connected(http: httpx.AsyncClient, processes: Processes) -> None:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        processes.check()
        try:
            if "fedops_broker_connected 1.0" in (await http.get("/metrics")).text:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(POLL_S)
    raise TimeoutError("the manager is not connected")


def costs_of(pid: int) -> dict:
    process = psutil.Process(pid)
    used = process.cpu_times()
    return {"memory_mib": process.memory_info().rss / MIB, "cpu_s": used.user + used.system}


ROWS = (
    ("all online after a cold start, s", "online_s", "at most", 2.0),
    ("trigger reached a client, p50, s", "trigger_p50_s", "", None),
    ("trigger reached a client, p99, s", "trigger_p99_s", "at most", 2.0),
    ("all answers known, s", "answers_s", "at most", 2.0),
    ("statuses taken in a second", "intake_per_s", "at least", 0.5),
    ("all killed at once: all known out, s", "out_s", "at most", 2.0),
    ("a new watch holds the fleet, s", "watch_s", "", None),
    ("memory at the end, MiB", "memory_mib", "", None),
    ("CPU over the whole life, s", "cpu_s", "", None),
    ("memory for 1,000 clients, MiB", "memory_mib_each", "", None),
    ("CPU for 1,000 clients, s", "cpu_s_each", "", None),
    ("broker: memory for 1,000 connected clients, MiB", "broker_memory_mib_each", "", None),
    ("broker: CPU to connect 1,000 clients, s", "broker_cpu_s_each", "", None),
)
MAX_GROWTH = 1.2
"""Cost of a client in the largest fleet by that in the smallest: it must not grow; no figure is truer than this."""


def report(size: int, taken: dict) -> str:
    rows = []
    for name, key, kind, limit in ROWS:
        floor, ours = taken["floor"][key], taken["manager"][key]
        ratio = ours / floor if floor else None
        verdict = ""
        if limit is not None and ratio is not None:
            holds = ratio <= limit if kind == "at most" else ratio >= limit
            verdict = "yes" if holds else "NO"
        wanted = f"{kind} {limit:g}" if limit else ""
        rows.append((name, figure(floor), figure(ours), figure(ratio), wanted, verdict))
    return f"\n{table((f'{size} clients', 'floor', 'manager', 'ratio', 'wanted', 'holds'), rows)}\n"


def growth(sizes: dict) -> str:
    """Say what a client costs, by the size of its fleet: beyond what the process cost before anybody came."""
    smallest, largest = min(sizes), max(sizes)
    rows = []
    for name, key in (("CPU, ms a client", "cpu_s_each"), ("memory, MiB a 1,000", "memory_mib_each")):
        for who in ("floor", "manager"):
            few, many = (sizes[size][who][key] for size in (smallest, largest))
            is_judged = who == "manager" and smallest != largest
            holds = ("yes" if many <= MAX_GROWTH * few else "NO") if is_judged else ""
            wanted = f"at most {MAX_GROWTH:g}" if is_judged else ""
            rows.append(
                (f"{name}, {who}", figure(few), figure(many), figure(many / few if few else None), wanted, holds)
            )
    head = ("what a client costs", f"of {smallest}", f"of {largest}", "ratio", "wanted", "holds")
    return f"\n{table(head, rows)}\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=[1000, 5000], help="clients to simulate")
    parser.add_argument("--times", type=int, default=1, help="lives of each fleet; figures are medians")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
