"""Readers of a fleet as processes: bare aiomqtt (`floor`, `newcomer`), and what our verb `watch` is made of (`watch`).

usage: fleet_reader.py {floor,newcomer,watch} URL NUM_CLIENTS. It says `{"ready": true}`, then each count reached;
the floor also publishes a trigger to everybody when it reads `fire`.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import aiomqtt
import orjson
from fleet_clients import TASK, mac_of

import fedops_mqtt
from fedops_mqtt.bus import Connected, Received
from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.protocol import ClientStatus, StartTrigger, encode, filter_for, topics, utc_now
from fedops_mqtt.protocol.topics import Channel

_IN_FLIGHT = 64
"""aiomqtt gets no faster with more publishes under way."""


def report(**facts: object) -> None:
    print(json.dumps(facts | {"at": time.monotonic()}), flush=True)


def bare(host: str, port: int) -> aiomqtt.Client:
    """Return a client with nothing of ours, in the version of MQTT that ours speaks: the same traffic."""
    return aiomqtt.Client(host, port, protocol=aiomqtt.ProtocolVersion.V5, max_inflight_messages=1000)


async def floor(url: str, num_clients: int) -> None:
    """Count clients by status with nothing of ours but the topics."""
    parts = urlsplit(url)
    async with bare(parts.hostname, parts.port) as client:
        client.pending_calls_threshold = 10 * _IN_FLIGHT  # it logs each call beyond ten
        await client.subscribe(filter_for(Channel.CLIENT_STATUS, TASK), qos=1)
        report(ready=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(_fire_when_told(client, num_clients), name="fire")
            status_of: dict[str, str] = {}
            counts: dict[str, int] = {}
            async for message in client.messages:
                topic, status = message.topic.value, orjson.loads(message.payload)["status"]
                before = status_of.get(topic)
                if before == status:
                    continue
                status_of[topic] = status
                counts[status] = counts.get(status, 0) + 1
                if before is not None:
                    counts[before] -= 1
                if counts[status] == num_clients:
                    report(all=status)


async def _fire_when_told(client: aiomqtt.Client, num_clients: int) -> None:
    while await asyncio.to_thread(sys.stdin.readline) == "fire\n":
        unsaid = iter(range(num_clients))

        async def work(unsaid: Iterator[int] = unsaid) -> None:
            for number in unsaid:
                mac = mac_of(number)
                await client.publish(str(topics.client_start(TASK, mac)), _trigger(mac), qos=1)

        async with asyncio.TaskGroup() as group:
            for number in range(_IN_FLIGHT):
                group.create_task(work(), name=f"publish-{number}")


def _trigger(mac: str) -> bytes:
    return encode(
        StartTrigger(
            run_id="floor", attempt=1, launch=1, term=1, task_id=TASK, client_mac=mac, instance=f"simulated-{mac}",
            server_ip="127.0.0.1:1", token="0" * 64, at=utc_now(),
        )
    )  # fmt: skip


async def newcomer(url: str, num_clients: int) -> None:
    """Read what is retained of everybody, with nothing of ours but the topics."""
    parts = urlsplit(url)
    status_of: dict[str, str] = {}
    async with bare(parts.hostname, parts.port) as client:
        report(ready=True)
        await client.subscribe(filter_for(Channel.CLIENT_STATUS, TASK), qos=1)
        async for message in client.messages:
            status_of[message.topic.value] = orjson.loads(message.payload)["status"]
            if len(status_of) == num_clients:
                break
        report(all="whole")


async def watch(url: str, num_clients: int) -> None:
    """Fold what the bus says into a fleet, and say when it is whole."""
    fleet = Fleet()
    async with fedops_mqtt.connect(url) as bus:
        report(ready=True)
        async for event in bus.events(TASK):
            if isinstance(event, Connected):
                fleet.listen(time.monotonic())
            elif isinstance(event, Received) and isinstance(event.message, ClientStatus):
                fleet.apply(event.message, now=time.monotonic(), is_retained=event.is_retained)
                if len(fleet.clients) == num_clients:
                    break
    report(all="whole")


if __name__ == "__main__":
    role, broker, number = sys.argv[1:]
    asyncio.run({"floor": floor, "newcomer": newcomer, "watch": watch}[role](broker, int(number)))
