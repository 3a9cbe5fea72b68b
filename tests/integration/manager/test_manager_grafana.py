"""Grafana's dashboard as it is used: a real Prometheus scrapes the manager and is asked every query of the file."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
import pytest
from manager_parts import PATIENCE_S, A, B, House, until
from ports import free_port

from fedops_mqtt.core.client import last_will
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.protocol import encode, topics, utc_now
from fedops_mqtt.protocol.messages import ServerMetrics

pytestmark = pytest.mark.long

GRAFANA = Path(__file__).resolve().parents[3] / "deploy/grafana/fedops-mqtt.json"
PERSON = "02:00:00:00:00:09"
SCRAPE_S = 1
RATE_INTERVAL = "1h"
"""Stands for Grafana's `$__rate_interval`: longer than the test takes, so that what happened once is in it."""
PRESENT = {"Clients here: here": 2, "Training: training": 2, "Active runs: runs": 1, "Broker: connected": 1}
"""What the stat panels say while two clients train."""
AT_REST = {"Trouble on the bus: dropped by the broker"}
"""What this test does not bring about: its rate is 0, which is not nothing."""

_CONFIG = """
global: {{scrape_interval: {scrape_s}s, scrape_timeout: {scrape_s}s}}
scrape_configs: [{{job_name: fedops-mqtt, static_configs: [{{targets: ["{target}"]}}]}}]
"""


class Prometheus:
    """A Prometheus, asked by its HTTP API as Grafana asks it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def ask(self, path: str, **query: str) -> Any:
        answer = await self._http.get(f"/api/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    async def values(self, expression: str) -> list[float]:
        """Return the values of an expression at this moment, one a series."""
        found = await self.ask("query", query=expression)
        return [float(each["value"][1]) for each in found["result"]]


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[Prometheus]:
    """A real Prometheus that scrapes one address; its data and its end are this test's."""
    program, address = shutil.which("prometheus"), f"127.0.0.1:{free_port()}"
    assert program is not None, "make test-acceptance installs prometheus (deploy/install-debian.sh)"
    config = folder / "prometheus.yml"
    config.write_text(_CONFIG.format(scrape_s=SCRAPE_S, target=target))
    process = await asyncio.create_subprocess_exec(
        program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address={address}", "--log.level=error",
    )  # fmt: skip
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=PATIENCE_S) as http:

            async def is_ready() -> bool:
                assert process.returncode is None, "prometheus ended"
                try:
                    return (await http.get("/-/ready")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(is_ready, "prometheus")
            yield Prometheus(http)
    finally:
        process.terminate()
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()


def queries() -> dict[str, str]:
    """Return the expression of every query by panel and legend, with Grafana's variables filled in."""
    panels = json.loads(GRAFANA.read_text())["panels"]
    asked = {
        f"{panel['title']}: {each['legendFormat']}": _filled(each) for panel in panels for each in panel["targets"]
    }
    assert len(asked) == sum(len(panel["targets"]) for panel in panels)
    return asked


def _filled(target: dict[str, str]) -> str:
    expression = target["expr"].replace("$__rate_interval", RATE_INTERVAL).replace("$task", ".*")
    assert "$" not in expression
    return expression


async def trouble(house: House) -> None:
    """Something that is none of the protocol, a status from before, and a client that comes back."""
    async with aiomqtt.Client("127.0.0.1", int(house.broker.url.rpartition(":")[2])) as person:
        topic = str(topics.client_status(house.task_id, PERSON))
        async with house.device(PERSON) as device:
            await person.publish(
                topic, encode(last_will(device.client.identity, Stamp(1, 1), at=utc_now(), heartbeat_s=60)), qos=1
            )
        async with house.device(PERSON):
            await person.publish(topic, "{", qos=1)


async def publish_round(house: House, run_id: str) -> None:
    """Say what an FL server measured of a round."""
    said = ServerMetrics(
        task_id=house.task_id, run_id=run_id, launch=1, round=1, duration_s=1.5, bytes_in=2_000, bytes_out=3_000,
        at=utc_now(),
    )  # fmt: skip
    async with house.device(PERSON) as person:
        await person.bus.publish(topics.server_metrics(house.task_id), said)


async def until_values(grafana: Prometheus, expression: str, is_so: Callable[[list[float]], bool]) -> None:
    async def look() -> bool:
        values = await grafana.values(expression)
        return bool(values) and is_so(values)

    await until(look, expression)


async def test_every_query_of_the_grafana_dashboard_shows_what_happened(house: House) -> None:
    async with house.managed() as api, prometheus(house.folder, api.http.base_url.netloc.decode()) as grafana:
        asked = queries()
        async with house.device(A), house.device(B):
            # From the first scrape with clients of a task on, its counters stand at 0.
            await until_values(grafana, asked["Clients here: here"], lambda values: values == [2])
            run_id = await api.start(house.task_id)
            await api.training(run_id)
            for name, now in PRESENT.items():
                await until_values(grafana, asked[name], lambda values, now=now: values == [now])
            assert await grafana.ask("label/task_id/values", **{"match[]": "fedops_clients"}) == [house.task_id]
            await trouble(house)
            await publish_round(house, run_id)
            await api.http.post(f"/api/v1/runs/{run_id}/stop")
            await api.ended(run_id)
        await house.broker.restart()
        for name, expression in asked.items():
            if name in AT_REST:
                assert await grafana.values(expression) == [0], name
            elif name not in PRESENT:
                await until_values(grafana, expression, lambda values: max(values) > 0)
