"""A broker that drops messages is reported on every page, with what to do."""

from pathlib import Path

import pytest
from browsing import PHONE, Visitor
from reader import observing
from test_large_fleet import CRAMPED, NUM_CRAMPED, a_fleet_of
from yard import Site, Yard

from fedops_mqtt.bus import Mosquitto

pytestmark = pytest.mark.long


async def test_a_broker_that_drops_messages_is_reported_on_the_page(tmp_path: Path, visitor: Visitor) -> None:
    yard = Yard(tmp_path)
    try:
        async with Mosquitto(changes=CRAMPED) as broker, observing(broker.url, "nobody") as observer:
            async with a_fleet_of(NUM_CRAMPED, broker.url):
                pass  # what everybody said is retained
            site = Site(yard, broker.url, "digits", observer, has_page=True)
            await site.start_manager()
            visitor.url = site.manager_url
            for path in ("/", "/tasks"):
                await visitor.open(path)
                await visitor.sees("raise max_queued_messages at the broker")
                await visitor.check_accessibility()
            await visitor.page.set_viewport_size(PHONE)
            await visitor.sees("clients may be missing")
    finally:
        await yard.clear_up()
