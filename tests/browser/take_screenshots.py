"""`make screenshots`: every view of the page, light, dark and on a phone, with a fleet that has something to show.

Written to the folder that is given; for people to look at, and for the README.
"""

import asyncio
import signal
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from browsing import PHONE, WIDE, Visitor, visiting
from reader import observing
from test_large_fleet import CRAMPED, NUM_CRAMPED, a_fleet_of
from yard import Site, Yard

from fedops_mqtt.bus import Mosquitto

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": WIDE, "color_scheme": "light"},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "device_scale_factor": 2, "is_mobile": True},
}
DRAWN_MS = 1500
"""Charts move for a moment after they are there."""


async def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    with tempfile.TemporaryDirectory() as scratch:
        yard = Yard(Path(scratch))
        try:
            async with Mosquitto() as broker, observing(broker.url, "digits") as observer:
                await show(Site(yard, broker.url, "digits", observer, has_page=True), folder)
            await show_losses(yard, folder)
        finally:
            await yard.clear_up()


async def show(site: Site, folder: Path) -> None:
    manager = await site.start_manager(more="[tasks.digits.limits]\njoin_s = 5")
    await shoot(site, folder, {"empty": "/"})
    clients = [
        await site.start_client(
            f"02:00:00:00:01:0{number + 1}", client_name=f"orchard-{number + 1}", partition_id=number,
            num_partitions=5, system_interval_s=0.5,
        )
        for number in range(5)
    ]  # fmt: skip
    await site.observer.until(lambda: len(site.observer.clients) == len(clients))
    finished, _ = [await finish(site, rounds) for rounds in ("8", "4")]  # the first one has a model to make yet
    clients[-1].process.send_signal(signal.SIGKILL)
    busy = {f"02:00:00:00:02:0{number}": "yard_apps:flat_out" for number in (1, 2)}
    broken = {"02:00:00:00:02:03": "yard_apps:raising"}
    for mac, app in {**busy, **broken}.items():
        await site.start_client(mac, app, client_name=f"greenhouse-{mac[-1]}", system_interval_s=0.5)
    chosen = ",".join([*busy, *broken])
    await site.observer.until(lambda: all(site.observer.client(mac) for mac in chosen.split(",")))
    running = await site.start_run(num_rounds=60, min_clients=2, clients=chosen.split(","))
    await site.observer.until_run(running, lambda run: run.round >= 2)
    level = "02-00-00-00-02-01"
    views = {
        "fleet": "/", "tasks": "/tasks", "task": "/tasks/digits", "run-finished": f"/runs/{finished}",
        "run": f"/runs/{running}", "client": f"/clients/digits/{level}",
        "client-failed": "/clients/digits/02-00-00-00-02-03", "unknown": f"/runs/{uuid.uuid4().hex}",
    }  # fmt: skip
    await shoot(site, folder, views)
    await site.yard.run("stop", running, "--manager", site.manager_url, "--wait")
    await manager.end()


async def finish(site: Site, rounds: str) -> str:
    run_id = await site.start_run(num_rounds=int(rounds), min_clients=5)
    await site.observer.until_ended(run_id)
    return run_id


async def show_losses(yard: Yard, folder: Path) -> None:
    """A broker that keeps messages to itself, and then one that is gone."""
    async with Mosquitto(changes=CRAMPED) as broker, observing(broker.url, "nobody") as observer:
        async with a_fleet_of(NUM_CRAMPED, broker.url):
            pass  # what everybody said is retained
        site = Site(yard, broker.url, "digits", observer, has_page=True)
        manager = await site.start_manager()
        await manager.until_printed("messages are lost at the broker")
        await shoot(site, folder, {"dropping": "/"})
        await broker.kill()
        await shoot(site, folder, {"no-broker": "/"})
        await manager.end()


async def shoot(site: Site, folder: Path, views: dict[str, str]) -> None:
    for look, context in LOOKS.items():
        async with visiting(**context) as visitor:
            visitor.url = site.manager_url
            for name, path in views.items():
                await take(visitor, path, folder / f"{name}-{look}.png")


async def take(visitor: Visitor, path: str, file: Path) -> None:
    page = await visitor.open(path)
    await page.wait_for_timeout(DRAWN_MS)
    await page.screenshot(path=file, full_page=True)
    print(file)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots")))
