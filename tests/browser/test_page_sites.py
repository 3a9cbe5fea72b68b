"""The page of several sites: rows of each with its site; one that is frozen or refuses hides no other one."""

import signal
from pathlib import Path

import pytest
from browsing import PHONE, Visitor
from playwright.async_api import expect
from ports import free_port
from reader import observing
from yard import Site, Yard

from fedops_mqtt.bus import Mosquitto

pytestmark = pytest.mark.long


async def test_sites_are_shown_together_and_one_that_is_frozen_with_its_reason(
    tmp_path: Path, visitor: Visitor
) -> None:
    (tmp_path / "north").mkdir()
    (tmp_path / "south").mkdir()
    yards = {name: Yard(tmp_path / name) for name in ("north", "south")}
    address = f"127.0.0.1:{free_port()}"
    try:
        async with (
            Mosquitto() as north_broker,
            Mosquitto() as south_broker,
            observing(north_broker.url, "digits") as north_observer,
            observing(south_broker.url, "words") as south_observer,
        ):
            north = Site(yards["north"], north_broker.url, "digits", north_observer, has_page=True)
            south = Site(yards["south"], south_broker.url, "words", south_observer)
            frozen = await south.start_manager()
            sites = f"north=http://{address},south={south.manager_url},east=http://127.0.0.1:1"
            await north.start_manager(http=address, sites=sites)
            await north.start_client("02:00:00:00:00:01", client_name="press")
            await south.start_client("02:00:00:00:00:02", client_name="lathe")
            run_id = await south.start_run(min_clients=1, num_rounds=1)
            visitor.url = north.manager_url
            await visitor.open("/sites")
            for shown in ("press", "lathe", run_id, "no answer from the manager at http://127.0.0.1:1"):
                await visitor.sees(shown)
            link = visitor.page.get_by_role("link", name=run_id)
            assert await link.get_attribute("href") == f"{south.manager_url}/runs/{run_id}"
            await visitor.check_accessibility()
            frozen.process.send_signal(signal.SIGSTOP)
            try:
                await visitor.sees(f"no answer from the manager at {south.manager_url}: none within 5 s")
                await expect(visitor.page.get_by_text("lathe")).to_have_count(0)
                await visitor.sees("press")
            finally:
                frozen.process.send_signal(signal.SIGCONT)
            await visitor.sees("lathe")
            await visitor.page.set_viewport_size(PHONE)
            await visitor.sees("no answer from the manager at http://127.0.0.1:1")
    finally:
        for yard in yards.values():
            await yard.clear_up()
