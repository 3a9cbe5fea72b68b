"""A page that is open on a run of many clients is sent what has changed, not all of it again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiomqtt
import pytest
from browsing import LANES, PATIENCE_MS, Visitor
from playwright.async_api import WebSocket, expect
from yard import Site

from fedops_mqtt.protocol import (
    ClientCondition,
    ClientMetrics,
    ClientStatus,
    CurrentRun,
    MetricsKind,
    Phase,
    ServerCondition,
    ServerStatus,
    encode,
    topics,
    utc_now,
)

pytestmark = pytest.mark.long

NUM_CLIENTS = 400
RUN = "large"
MAX_SHARE = 0.05
"""Of the bytes that opening the page takes, those that one client's news may take."""


class LargeRun:
    """An adopted run by the messages of its server and its clients alone."""

    def __init__(self, bus: aiomqtt.Client, task_id: str) -> None:
        self._bus = bus
        self._task_id = task_id
        self._seq = 0

    def mac(self, number: int) -> str:
        return f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"

    async def publish_status(self, number: int, round_: int | None = None) -> None:
        """Publish a client's status: idle, or training a round."""
        self._seq += 1
        run = None
        if round_ is not None:
            run = CurrentRun(run_id=RUN, attempt=1, launch=0, phase=Phase.TRAINING, round=round_)
        mac = self.mac(number)
        status = ClientStatus(
            instance="i", epoch=1, seq=self._seq, at=utc_now(), heartbeat_s=3600, task_id=self._task_id, client_mac=mac,
            client_name=f"device-{number:03}", run=run,
            status=ClientCondition.TRAIN_STARTED if run else ClientCondition.ONLINE,
        )  # fmt: skip
        await self._publish(str(topics.client_status(self._task_id, mac)), status)

    async def measure(self, number: int, round_: int) -> None:
        """Publish what a client measured in a round."""
        values = {"stage": "train", "compute_s": 1.0, "download_s": 0.5, "upload_s": 0.5}
        metrics = ClientMetrics(
            kind=MetricsKind.ROUND, task_id=self._task_id, client_mac=self.mac(number), instance="i", run_id=RUN,
            attempt=1, round=round_, values=values, at=utc_now(),
        )  # fmt: skip
        await self._publish(str(topics.client_metrics(self._task_id, self.mac(number))), metrics)

    async def announce(self) -> None:
        """Publish the server's status: the manager takes the run up and triggers everybody."""
        status = ServerStatus(
            instance="s", epoch=1, seq=1, at=utc_now(), heartbeat_s=3600, task_id=self._task_id, run_id=RUN, launch=0,
            status=ServerCondition.READY, server_ip="127.0.0.1:1", num_rounds=9,
        )  # fmt: skip
        await self._publish(str(topics.server_status(self._task_id)), status)

    async def _publish(self, topic: str, message: ClientStatus | ClientMetrics | ServerStatus) -> None:
        is_retained = not topic.endswith("/metrics")
        await self._bus.publish(topic, encode(message), qos=1, retain=is_retained)


async def test_one_clients_news_cost_a_row_not_the_page(site: Site, visitor: Visitor) -> None:
    tasks = site.yard.folder / "adopting.toml"
    tasks.write_text(f"[tasks.{site.task_id}]\nadopt = true\nmin_clients = 2\n")
    await site.until_leading(await site.launch_manager(tasks))
    visitor.url = site.manager_url
    async with aiomqtt.Client("127.0.0.1", int(site.broker.rpartition(":")[2])) as bus:
        run = LargeRun(bus, site.task_id)
        for number in range(NUM_CLIENTS):
            await run.publish_status(number)
        await until(lambda: has(site, "/health", "num_clients", NUM_CLIENTS))
        await run.announce()
        await until(lambda: has_all(site, "triggered"))
        for number in range(NUM_CLIENTS):
            await run.publish_status(number, 1)
            await run.measure(number, 1)
        await until(lambda: has_all(site, "training"))

        received: list[int] = []
        sockets: list[WebSocket] = []
        visitor.page.on("websocket", lambda socket: listen(socket, received))
        visitor.page.on("websocket", lambda socket: sockets.append(socket))
        visitor.expects("WebSocket connection to")  # a page that lost its connection loads anew
        await visitor.open(f"/runs/{RUN}")
        await visitor.sees(f"{NUM_CLIENTS} training")
        await visitor.sees(f"and {NUM_CLIENTS - 200} more")
        await visitor.draws(LANES, has_bars(3 * 60))
        whole = sum(received)
        for number in range(60):
            received.clear()
            num_sockets = len(sockets)
            await run.publish_status(number, 2)
            await run.measure(number, 2)
            row = visitor.page.locator("tr", has_text=f"device-{number:03}").first
            await expect(row.locator("td").nth(2)).to_have_text("2", timeout=PATIENCE_MS)
            await visitor.draws(LANES, has_bars(3 * (60 + number + 1)))
            if len(sockets) == num_sockets:
                break
        assert 0 < sum(received) < MAX_SHARE * whole, (received, whole)


async def until(ask: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_MS / 1000 * 10):
        while not await ask():  # noqa: ASYNC110 - a page and a manager are asked
            await asyncio.sleep(0.2)


def listen(socket: WebSocket, received: list[int]) -> None:
    socket.on("framereceived", lambda payload: received.append(len(payload)))


async def has(site: Site, path: str, name: str, value: object) -> bool:
    return bool((await site.ask(path))[name] == value)


async def has_all(site: Site, status: str) -> bool:
    async with site.manager_client() as api:
        known = [run.run_id for run in await api.runs()]
    # An announced run is known once the manager has read of it.
    return RUN in known and await has(site, f"/runs/{RUN}", "clients_by_status", {status: NUM_CLIENTS})


def has_bars(number: int) -> Callable[[dict[str, list[Any]]], bool]:
    return lambda shown: len(shown.get("phases", [])) == number
