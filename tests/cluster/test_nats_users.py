"""What `fedops-mqtt fleet nats` lets everybody do, on real NATS servers: what the ACL lets them do on mosquitto."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import pytest
from cluster_site import MACS, SCREENS, TASK, enrol_everybody
from nodes import Brokers, Program, cluster
from secure_site import SecureSite

from fedops_mqtt.protocol import mac_to_level

pytestmark = pytest.mark.long

A, B = (mac_to_level(mac) for mac in MACS[:2])
V311 = aiomqtt.ProtocolVersion.V311
PATIENCE_S = 300.0
SILENCE_S = 5
"""A server may leave what it refuses, or cannot do yet, without an answer; whoever asked goes on after this."""


@pytest.fixture
async def brokers(tmp_path: Path) -> AsyncIterator[Brokers]:
    async with cluster(tmp_path / "brokers", enrol_everybody) as brokers:
        # The first CONNECT makes NATS' streams, and is not answered while their leaders are elected.
        async with asyncio.timeout(PATIENCE_S):
            while not await is_known(brokers, "manager"):
                pass
        yield brokers


def knock(brokers: Brokers, name: str, **options: float) -> aiomqtt.Client:
    return SecureSite(brokers.fleet, None).knock(name, version=V311, **options)  # type: ignore[arg-type]


async def next_of(client: aiomqtt.Client) -> tuple[str, bytes]:
    async with asyncio.timeout(PATIENCE_S):
        message = await anext(client.messages)
    return str(message.topic), bytes(message.payload or b"")  # type: ignore[arg-type]


async def test_nobody_writes_or_reads_what_is_not_theirs(brokers: Brokers) -> None:
    mine, start_of_b = f"fedops/v1/{TASK}/clients/{A}/status", f"fedops/v1/{TASK}/clients/{B}/start"
    async with knock(brokers, MACS[1]) as b, knock(brokers, "manager") as manager:
        assert [code.value for code in await b.subscribe(start_of_b, qos=1)] == [1]
        assert [code.value for code in await manager.subscribe("fedops/v1/#", qos=1)] == [1]
        async with knock(brokers, MACS[0]) as a:
            refused = [await a.subscribe(topic, qos=0) for topic in ("fedops/v1/#", start_of_b, "$SYS/#")]
            assert [codes[0].value for codes in refused] == [128] * 3
            await a.publish(mine, b"mine", qos=1, retain=True)
        for intruder in (MACS[0], SCREENS[0]):
            try:
                async with knock(brokers, intruder, timeout=SILENCE_S) as client:
                    await client.publish(start_of_b, b"forged", qos=0)
                    await client.subscribe(f"fedops/v1/{TASK}/server/status", qos=0)
            except aiomqtt.MqttError:
                pass  # a server may end such a connection
        await manager.publish(start_of_b, b"genuine", qos=1)
        assert await next_of(b) == (start_of_b, b"genuine")
        assert [await next_of(manager) for _ in range(2)] == [(mine, b"mine"), (start_of_b, b"genuine")]
    async with knock(brokers, SCREENS[0]) as newcomer:
        await newcomer.subscribe(f"fedops/v1/{TASK}/clients/+/status", qos=0)
        assert await next_of(newcomer) == (mine, b"mine")


async def test_who_is_revoked_is_no_user_after_a_reload_and_the_others_stay_connected(brokers: Brokers) -> None:
    async with knock(brokers, MACS[1]) as b:
        await b.subscribe(f"fedops/v1/{TASK}/clients/{B}/stop", qos=0)
        brokers.fleet.revoke(MACS[0])
        for node in brokers.nodes.values():
            assert isinstance(node, Program)
            shutil.copy(brokers.fleet.broker_folder / "nats-users.conf", node.folder)
            node.signal(signal.SIGHUP)
        async with asyncio.timeout(PATIENCE_S):
            while await is_known(brokers, MACS[0]):  # noqa: ASYNC110 - a server says nothing of a reload
                await asyncio.sleep(0.1)
        async with knock(brokers, "manager") as manager:
            await manager.publish(f"fedops/v1/{TASK}/clients/{B}/stop", b"stop", qos=1)
            assert (await next_of(b))[1] == b"stop"


async def is_known(brokers: Brokers, name: str) -> bool:
    try:
        async with knock(brokers, name, timeout=SILENCE_S):
            return True
    except aiomqtt.MqttError:
        return False
