"""Several brokers: a frozen, dead or refusing one is passed over, and the preferred one is returned to calmly."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from bus_helpers import MAC, PATIENCE_S, QUICK, Daemon, next_event, retained_status, status
from ports import free_port

from fedops_mqtt.bus import Connected, ConnectError, Connection, Disconnected, Mosquitto
from fedops_mqtt.protocol import ClientCondition, topics

FROZEN = replace(QUICK, first_try_s=5.0, connect_timeout_s=PATIENCE_S)
"""A test that waited for the whole time-out would fail by its own limit."""


@asynccontextmanager
async def frozen_at(host: str, port: int) -> AsyncIterator[None]:
    """Somebody who takes connections and says nothing, as the kernel does for a process that is stopped."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, host, port):
        yield


async def test_a_frozen_broker_costs_its_first_try_and_the_next_one_is_used(broker: Mosquitto) -> None:
    async with Mosquitto() as first:
        first.pause()
        async with asyncio.timeout(PATIENCE_S), Connection(f"{first.url},{broker.url}", options=FROZEN) as connection:
            await connection.wait_first_try()
            assert connection.broker == broker.url
        first.resume()


async def test_the_next_broker_takes_over_from_one_that_dies(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with Mosquitto() as first, daemon.on(f"{first.url},{broker.url}") as connection:
        await next_event(connection, Connected)
        assert connection.broker == first.url
        await first.kill()
        await next_event(connection, Connected)
        assert await daemon.owner.flush(PATIENCE_S)
        assert (await retained_status(broker, daemon.topic)).status is ClientCondition.ONLINE


async def test_none_of_several_is_one_error_that_names_them_all() -> None:
    ports = [free_port(), free_port()]
    urls = [f"mqtt://127.0.0.1:{port}" for port in ports]
    async with Connection(",".join(urls), options=QUICK) as connection:
        with pytest.raises(ConnectError) as caught:
            await connection.wait_first_try()
    assert all(url in str(caught.value) for url in urls)


@pytest.mark.parametrize("is_mqtt5", [True, False])
async def test_the_preferred_broker_is_returned_to_when_it_is_back_and_nothing_is_in_the_way(
    broker: Mosquitto, task_id: str, is_mqtt5: bool
) -> None:
    may_move = False
    options = replace(QUICK, return_s=0.05, first_try_s=5.0, is_mqtt5_tried=is_mqtt5)
    async with Mosquitto() as first:
        await first.kill()
        urls = f"{first.url},{broker.url}"
        async with Connection(urls, options=options, may_move=lambda: may_move) as connection:
            await next_event(connection, Connected)
            await first.start()
            await connection.publish(topics.client_status(task_id, MAC), status(task_id))
            assert connection.broker == broker.url
            may_move = True
            assert "preferred" in (await next_event(connection, Disconnected)).reason
            while connection.broker != first.url:
                await next_event(connection, Connected)


async def test_a_frozen_address_of_a_name_is_skipped(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def two_addresses(host: str, *rest: Any, **named: Any) -> list[Any]:
        if host != "brokers.test":
            return look_up(host, *rest, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, broker.port)) for ip in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    url = f"mqtt://brokers.test:{broker.port}"
    async with (
        frozen_at("127.0.0.2", broker.port),
        asyncio.timeout(PATIENCE_S),
        Connection(url, options=FROZEN) as connection,
    ):
        await connection.wait_first_try()
        assert connection.broker == f"{url} (127.0.0.1)"


async def test_a_broker_that_hangs_on_mqtt_5_is_still_found_among_several(broker: Mosquitto) -> None:
    """A quick try's time-out says nothing of the version; the round after asks in 3.1.1 too."""
    hanging = free_port()
    options = replace(QUICK, first_try_s=0.2, connect_timeout_s=0.5)

    async def only_311(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(4096)
        if first and first[8] == 4:
            far_reader, far_writer = await asyncio.open_connection(broker.host, broker.port)
            far_writer.write(first)
            writer.write(await far_reader.read(4096))
            far_writer.close()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(only_311, "127.0.0.1", hanging), asyncio.timeout(PATIENCE_S):
        urls = f"mqtt://127.0.0.1:{free_port()},mqtt://127.0.0.1:{hanging}"
        async with Connection(urls, options=options) as connection:
            assert (await next_event(connection, Connected)).protocol_version == "3.1.1"
