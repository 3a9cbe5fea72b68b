"""How fast the page is with a large fleet: `python benchmarks/page.py --clients 5000 --changes 50 --seconds 20`.

Clients are statuses on a real broker, said by one connection; the manager is a process, the page is in Chromium. Told:
until the first view is complete, from a status to the screen, and what of a core the manager took meanwhile.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiomqtt
import psutil
from bench_processes import MIB, end_on_sigterm, figure, machine, save_json, table

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests/acceptance"), str(HERE.parent / "tests/browser")]

from browsing import visiting  # noqa: E402
from reader import observing  # noqa: E402
from yard import Site, Yard  # noqa: E402

from fedops_mqtt.bus import Mosquitto  # noqa: E402
from fedops_mqtt.protocol import (  # noqa: E402
    ClientCondition,
    ClientStatus,
    CurrentRun,
    Phase,
    encode,
    topics,
    utc_now,
)

TASK = "digits"
NUM_VIEWS = 5
_WATCHED = 0
"""The client whose changes are timed: first in the table."""
_SHOWN = """(count) => { const el = document.querySelector('.nicegui-aggrid');
  return getElement(Number(el.id.slice(1))).api.getDisplayedRowCount() === count
    && document.querySelector('.ag-row [col-id="state"]') !== null; }"""
_OBSERVE = """() => { window.seen = [];
  const cell = () => document.querySelector('.ag-row[row-index="0"] [col-id="state"]')?.textContent;
  let before = cell();
  new MutationObserver(() => { const now = cell();
    if (now !== before) { before = now; window.seen.push([Date.now(), now]); } })
    .observe(document.querySelector('.nicegui-aggrid'), {subtree: true, childList: true, characterData: true}); }"""


class Fleet:
    """Statuses of many clients."""

    def __init__(self, client: aiomqtt.Client, num_clients: int) -> None:
        self._client = client
        self._num_clients = num_clients
        self._seq = [0] * num_clients
        self._trains = [False] * num_clients

    async def publish_status(self, number: int) -> None:
        """Say a client's status, live and retained."""
        self._seq[number] += 1
        mac = f"02:00:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        run = (
            CurrentRun(run_id="r", attempt=1, launch=1, phase=Phase.TRAINING, round=1) if self._trains[number] else None
        )
        status = ClientStatus(
            instance="bench", epoch=1, seq=self._seq[number], at=utc_now(), heartbeat_s=3600, task_id=TASK,
            status=ClientCondition.TRAIN_STARTED if run else ClientCondition.ONLINE, client_mac=mac, run=run,
            client_name=f"device-{number:05}", agent={"fedops-mqtt": "0.1.0", "python": "3.11"},
        )  # fmt: skip
        await self._client.publish(str(topics.client_status(TASK, mac)), encode(status), qos=1, retain=True)

    async def say_all(self) -> None:
        for start in range(0, self._num_clients, 10):
            numbers = range(start, min(start + 10, self._num_clients))
            await asyncio.gather(*(self.publish_status(number) for number in numbers))

    async def change(self, number: int) -> None:
        self._trains[number] = not self._trains[number]
        await self.publish_status(number)


async def measured(given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        yard = Yard(Path(scratch))
        try:
            async with Mosquitto() as broker, observing(broker.url, "nobody") as observer:
                site = Site(yard, broker.url, TASK, observer)
                port = int(broker.url.rpartition(":")[2])
                async with aiomqtt.Client("127.0.0.1", port) as client:
                    fleet = Fleet(client, given.clients)
                    await fleet.say_all()
                    manager = await site.start_manager()
                    return await measure(site, psutil.Process(manager.process.pid), fleet, given)
        finally:
            await yard.clear_up()


async def measure(site: Site, manager: psutil.Process, fleet: Fleet, given: argparse.Namespace) -> dict[str, Any]:
    async with visiting() as visitor:
        await visitor.page.goto(site.manager_url + "/tasks")  # libraries are in the browser's cache at the second look
        await settled(site, given.clients)
        first_views = [await view(visitor.page, site.manager_url, given.clients) for _ in range(NUM_VIEWS)]
        await visitor.page.evaluate(_OBSERVE)
        before, began = manager.cpu_times(), time.monotonic()
        said = await keep_changing(fleet, given.clients, given.changes, given.seconds)
        await visitor.page.wait_for_timeout(2000)
        after, took = manager.cpu_times(), time.monotonic() - began
        seen = await visitor.page.evaluate("() => window.seen")
    delays = [at / 1000 - told for told, (at, _) in zip(said, seen, strict=False)]
    return {
        "first_views_s": first_views,
        "median_view_s": statistics.median(first_views),
        "slowest_view_s": max(first_views),
        "delay_median_s": statistics.median(delays),
        "delay_max_s": max(delays),
        "changes_missed": len(said) - len(seen),
        "manager_cores": (after.user + after.system - before.user - before.system) / took,
        "manager_mib": manager.memory_info().rss / MIB,
    }


async def settled(site: Site, num_clients: int) -> None:
    """Wait until the manager has read everybody's retained status."""
    while (await site.ask("/health"))["num_clients"] != num_clients:  # noqa: ASYNC110 - it is asked for over HTTP
        await asyncio.sleep(0.2)


async def view(page: Any, url: str, num_clients: int) -> float:
    began = time.monotonic()
    await page.goto(url)
    await page.wait_for_function(_SHOWN, arg=num_clients, timeout=60_000)
    return time.monotonic() - began


async def keep_changing(fleet: Fleet, num_clients: int, changes_per_s: float, seconds: float) -> list[float]:
    """Change statuses at a steady rate, the watched client's every two seconds; return when those were said."""
    said = []
    began, next_watched = time.monotonic(), 1.0
    for count in range(int(changes_per_s * seconds)):
        await asyncio.sleep(max(0.0, began + count / changes_per_s - time.monotonic()))
        if time.monotonic() - began >= next_watched:
            next_watched += 2.0
            said.append(time.time())
            await fleet.change(_WATCHED)
        else:
            await fleet.change(1 + count % (num_clients - 1))
    return said


TARGETS = (
    ("first full view, s, the slowest of five", "slowest_view_s", 2.0),
    ("from a status to the screen, s, the slowest", "delay_max_s", 1.0),
    ("changes of the watched client not seen", "changes_missed", 0.0),
    ("cores of the manager", "manager_cores", 1.0),
    ("from a status to the screen, s, median", "delay_median_s", None),
    ("first full view, s, median", "median_view_s", None),
    ("memory of the manager, MiB", "manager_mib", None),
)


def report(given: argparse.Namespace, taken: dict[str, Any]) -> str:
    rows = []
    for name, key, limit in TARGETS:
        wanted, holds = ("", "") if limit is None else (f"at most {limit:g}", "yes" if taken[key] <= limit else "NO")
        rows.append((name, figure(taken[key]), wanted, holds))
    views = ", ".join(figure(each) for each in taken["first_views_s"])
    head = (f"{given.clients} clients, {given.changes:g} changes a second", "measured", "wanted", "holds")
    return f"\n{table(head, rows)}\n\nfirst full views, s: {views}\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=5000, help="clients to simulate")
    parser.add_argument("--changes", type=float, default=50.0, help="statuses a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long statuses change")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser.parse_args()


def main() -> None:
    end_on_sigterm()
    given, about = parse(), machine()
    taken = asyncio.run(measured(given))
    print(f"machine: {about}\n{report(given, taken)}")
    save_json(given.json, {"machine": about, "clients": given.clients, "changes_per_s": given.changes, **taken})


if __name__ == "__main__":
    main()
