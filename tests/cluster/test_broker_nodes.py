"""A run outlives each broker node's death and freeze, on both profiles of broker-config/ha; so does the next run."""

import re
from pathlib import Path

import pytest
from cluster_site import FAULTS, enrol_everybody, now, site_on, trained_twice
from nodes import PROFILES
from yard import Yard

pytestmark = pytest.mark.long

CASES = [
    (profile, node, fault)
    for profile, nodes in (("pair", "ab"), ("cluster", "abc"))
    for node in nodes
    for fault in FAULTS
]


@pytest.mark.parametrize(("profile", "node", "fault"), CASES)
async def test_a_run_outlives_a_node(yard: Yard, tmp_path: Path, profile: str, node: str, fault: str) -> None:
    async with PROFILES[profile](tmp_path / "brokers", enrol_everybody) as brokers:
        settings = {"subscribe_qos": 0} if profile == "cluster" else {}
        async with site_on(yard, brokers, **settings) as site:
            clients = await site.start_all()
            run_id = await site.begin_run(clients)
            async with FAULTS[fault](brokers.nodes[node]):
                await site.check_presence(now())
                if fault == "killed":
                    await site.finish_run(run_id)
            await site.check_presence(now())
            if fault == "frozen":
                await site.finish_run(run_id)
            second = await site.start_run(num_rounds=1, min_clients=3)
            await site.finish_run(second, num_rounds=1)
            await site.check_presence(now())
            assert trained_twice(clients) == []


async def test_without_a_proxy_several_urls_lead_past_a_frozen_node_and_back(yard: Yard, tmp_path: Path) -> None:
    async with PROFILES["cluster"](tmp_path / "brokers", enrol_everybody) as brokers:
        direct = {"broker": brokers.urls, "broker_return_s": 4, "publish_timeout_s": 4}
        async with site_on(yard, brokers, subscribe_qos=0, **direct) as site:
            clients = await site.start_all()
            run_id = await site.begin_run(clients)
            async with FAULTS["frozen"](brokers.nodes["a"]):
                for client in clients.values():
                    await client.until_printed("the preferred broker cannot be used, going on with another one")
                await site.check_presence(now())
            await site.finish_run(run_id)
            first = re.escape(brokers.urls.partition(",")[0])
            for client in clients.values():  # by itself, or since the other connection broke meanwhile
                await client.until_printed(f"(?s)going on with another one.*connected to the broker broker={first}")
            second = await site.start_run(num_rounds=1, min_clients=3)
            await site.finish_run(second, num_rounds=1)
            assert trained_twice(clients) == []
