"""What `fedops-mqtt fleet nats` lets everybody do, on real NATS servers: what the ACL lets them do on mosquitto."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
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
MINE, START_OF_B = f"fedops/v1/{TASK}/clients/{A}/status", f"fedops/v1/{TASK}/clients/{B}/start"
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


def bare_client(brokers: Brokers, name: str) -> aiomqtt.Client:
    return SecureSite(brokers.fleet, None).bare_client(name, version=V311, timeout=SILENCE_S)  # type: ignore[arg-type]


@asynccontextmanager
async def subscribed(brokers: Brokers, name: str, topic: str) -> AsyncIterator[aiomqtt.Client]:
    """A client with a subscription of QoS 1: NATS makes a consumer for it, which may fail while nodes are elected."""
    async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as stack:
        while True:
            async with AsyncExitStack() as attempt:
                with suppress(aiomqtt.MqttError):
                    client = await attempt.enter_async_context(bare_client(brokers, name))
                    if [code.value for code in await client.subscribe(topic, qos=1)] == [1]:
                        stack.push_async_exit(attempt.pop_all())
                        break
        yield client


async def next_of(client: aiomqtt.Client) -> tuple[str, bytes]:
    async with asyncio.timeout(PATIENCE_S):
        message = await anext(client.messages)
    return str(message.topic), bytes(message.payload or b"")  # type: ignore[arg-type]


async def until_genuine(client: aiomqtt.Client) -> list[tuple[str, bytes]]:
    """Return what comes up to the genuine start, that too."""
    seen = [await next_of(client)]
    while seen[-1][1] != b"genuine":
        seen.append(await next_of(client))
    return seen


async def trespass(brokers: Brokers) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    """Write and read what is somebody else's; return what the device B and the manager read meanwhile.

    Raises:
        aiomqtt.MqttError: the server has ended one of their connections.
    """
    async with subscribed(brokers, MACS[1], START_OF_B) as b, subscribed(brokers, "manager", "fedops/v1/#") as manager:
        async with bare_client(brokers, MACS[0]) as a:
            refused = [await a.subscribe(topic, qos=0) for topic in ("fedops/v1/#", START_OF_B, "$SYS/#")]
            assert [codes[0].value for codes in refused] == [128] * 3
            await a.publish(MINE, b"mine", qos=1, retain=True)
        for intruder in (MACS[0], SCREENS[0]):
            with suppress(aiomqtt.MqttError):  # a server may end such a connection
                async with bare_client(brokers, intruder) as client:
                    await client.publish(START_OF_B, b"forged", qos=0)
                    await client.subscribe(f"fedops/v1/{TASK}/server/status", qos=0)
        await manager.publish(START_OF_B, b"genuine", qos=1)
        return await until_genuine(b), await until_genuine(manager)


async def test_no_user_writes_or_reads_topics_of_others(brokers: Brokers) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(aiomqtt.MqttError):  # a cluster that has just elected its leaders ends connections: once more
                by_b, by_manager = await trespass(brokers)
                break
    assert by_b == [(START_OF_B, b"genuine")]
    assert set(by_manager) == {(MINE, b"mine"), (START_OF_B, b"genuine")}
    async with bare_client(brokers, SCREENS[0]) as newcomer:
        await newcomer.subscribe(f"fedops/v1/{TASK}/clients/+/status", qos=0)
        assert await next_of(newcomer) == (MINE, b"mine")


async def test_a_revoked_identity_is_no_user_after_a_reload_and_the_others_stay_connected(brokers: Brokers) -> None:
    async with bare_client(brokers, MACS[1]) as b:
        await b.subscribe(f"fedops/v1/{TASK}/clients/{B}/stop", qos=0)
        brokers.fleet.revoke(MACS[0])
        for node in brokers.nodes.values():
            assert isinstance(node, Program)
            shutil.copy(brokers.fleet.broker_folder / "nats-users.conf", node.folder)
            node.signal(signal.SIGHUP)
        async with asyncio.timeout(PATIENCE_S):
            while await is_known(brokers, MACS[0]):  # noqa: ASYNC110 - a server says nothing of a reload
                await asyncio.sleep(0.1)
        async with bare_client(brokers, "manager") as manager:
            await manager.publish(f"fedops/v1/{TASK}/clients/{B}/stop", b"stop", qos=1)
            assert (await next_of(b))[1] == b"stop"


async def is_known(brokers: Brokers, name: str) -> bool:
    try:
        async with bare_client(brokers, name):
            return True
    except aiomqtt.MqttError:
        return False
