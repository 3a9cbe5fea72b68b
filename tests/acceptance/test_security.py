"""The attacks of docs/security.md at the broker, each against the configuration and ACL as they are shipped.

What the broker denies is shown by what is delivered: MQTT 3.1.1 acknowledges what it throws away. After every attack
the attacker says something that it may say; a reader that hears this and nothing else has not delivered the attack.
"""

import asyncio
import math
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiomqtt
import psutil
import pytest
from secure_site import (
    BY_PASSWORD,
    HOST,
    MANAGER,
    PATIENCE_S,
    PROBE,
    SCREEN,
    SERVER,
    STANDBY,
    TASK,
    VERSIONS,
    A,
    B,
    SecureSite,
    make_fleet,
    vanish,
)
from yard import peak_bytes

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.enrolment.authority import Credentials, issue, make_authority
from fedops_mqtt.protocol import Topic, mac_to_level, topics
from fedops_mqtt.runtime.background import alongside

ALL = "fedops/v1/#"
EVIL = b"evil"
FINE = b"fine"

MEGABYTE = 1024 * 1024


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[SecureSite]:
    made = make_fleet(tmp_path / "fleet")
    async with Mosquitto(config=made.broker_folder / "mosquitto.conf") as broker:
        yield SecureSite(made, broker)


async def attack(site: SecureSite, who: str, forbidden: Sequence[Topic], version: aiomqtt.ProtocolVersion) -> None:
    """Publish what one may not, then what one may."""
    async with site.bare_client(who, version=version) as attacker:
        for topic in forbidden:
            with suppress(aiomqtt.MqttError):
                await attacker.publish(str(topic), EVIL, qos=1, retain=True)
        await attacker.publish(str(marker_of(who)), FINE, qos=1)


def marker_of(who: str) -> Topic:
    if who == MANAGER:
        return topics.manager_status()
    return topics.server_metrics(TASK) if who == SERVER else topics.client_metrics(TASK, who)


FORBIDDEN = {
    A: (
        topics.client_status("another-task", A),
        topics.client_metrics("another-task", A),
        topics.client_status(TASK, B),
        topics.client_metrics(TASK, B),
        topics.client_start(TASK, A),
        topics.client_start(TASK, B),
        topics.client_stop(TASK, A),
        topics.client_stop(TASK, B),
        topics.server_status(TASK),
        topics.server_metrics(TASK),
        topics.run_status(TASK, "r1"),
        topics.manager_status(),
    ),
    BY_PASSWORD: (topics.client_status(TASK, A), topics.client_start(TASK, A), topics.manager_status()),
    SERVER: (
        topics.client_status(TASK, A),
        topics.client_start(TASK, A),
        topics.run_status(TASK, "r1"),
        topics.server_status("another-task"),
        topics.manager_status(),
    ),
    MANAGER: (topics.server_status(TASK), topics.server_metrics(TASK), topics.client_metrics(TASK, A)),
}


@pytest.mark.parametrize("version", VERSIONS, ids=["3.1.1", "5"])
@pytest.mark.parametrize("who", FORBIDDEN)
async def test_the_acl_denies_each_identity_what_it_may_not_publish(
    site: SecureSite, who: str, version: aiomqtt.ProtocolVersion
) -> None:
    async with site.subscribed(SCREEN if who == MANAGER else STANDBY, ALL) as subscriber:
        await attack(site, who, FORBIDDEN[who], version)
        delivered = await subscriber.until(str(marker_of(who)))
    assert [message.topic for message in delivered] == [str(marker_of(who))]


@pytest.mark.parametrize("version", VERSIONS, ids=["3.1.1", "5"])
async def test_a_dashboard_can_publish_nothing(site: SecureSite, version: aiomqtt.ProtocolVersion) -> None:
    async with site.subscribed(STANDBY, ALL) as subscriber:
        async with site.bare_client(SCREEN, version=version) as screen:
            for topic in (topics.client_status(TASK, A), topics.client_start(TASK, A), topics.manager_status()):
                with suppress(aiomqtt.MqttError):
                    await screen.publish(str(topic), EVIL, qos=1)
        async with site.bare_client(A) as device:
            await device.publish(str(marker_of(A)), FINE, qos=1)
        delivered = await subscriber.until(str(marker_of(A)))
    assert EVIL not in [message.payload for message in delivered]


@pytest.mark.parametrize("who", [SCREEN, PROBE, SERVER])
async def test_an_identity_that_is_no_device_cannot_publish_as_a_device_of_its_name(site: SecureSite, who: str) -> None:
    own = [f"fedops/v1/{TASK}/clients/{who}/{channel}" for channel in ("status", "metrics")]
    async with site.subscribed(STANDBY, ALL) as subscriber:
        async with site.bare_client(who) as pretender:
            for topic in own:
                with suppress(aiomqtt.MqttError):
                    await pretender.publish(topic, EVIL, qos=1, retain=True)
        async with site.bare_client(A) as device:
            await device.publish(str(marker_of(A)), FINE, qos=1)
        assert [message.payload for message in await subscriber.until(str(marker_of(A)))] == [FINE]


@pytest.mark.parametrize("version", VERSIONS, ids=["3.1.1", "5"])
async def test_a_last_will_on_anothers_status_is_never_delivered(
    site: SecureSite, version: aiomqtt.ProtocolVersion
) -> None:
    own, others = str(topics.client_status(TASK, A)), str(topics.client_status(TASK, B))
    async with site.subscribed(STANDBY, ALL) as subscriber:
        for topic, payload in ((others, EVIL), (own, FINE)):
            will = aiomqtt.Will(topic, payload, qos=1, retain=True)
            with suppress(aiomqtt.MqttError):
                async with site.bare_client(A, version=version, will=will) as attacker:
                    vanish(attacker)
        delivered = await subscriber.until(own, FINE)
    assert [message.payload for message in delivered] == [FINE]
    async with site.subscribed(STANDBY, others, own) as newcomer:
        assert [message.topic for message in await newcomer.until(own)] == [own], "nor is a denied one retained"


@pytest.mark.parametrize("who", [B, BY_PASSWORD, SERVER, SCREEN])
async def test_only_its_client_and_the_manager_receive_a_start(site: SecureSite, who: str) -> None:
    start = str(topics.client_start(TASK, A))
    legal = topics.client_start(TASK, who) if ":" in who else topics.client_status(TASK, A)
    async with (
        site.subscribed(A, start) as addressed,
        site.subscribed(who, "#", ALL, start, "fedops/v1/+/clients/+/start") as thief,
        site.bare_client(MANAGER) as manager,
    ):
        await manager.publish(start, b"token", qos=1)
        assert [message.payload for message in await addressed.until(start)] == [b"token"]
        await manager.publish(str(legal), FINE, qos=1)
        assert b"token" not in [message.payload for message in await thief.until(str(legal))]


async def test_a_device_reads_nothing_of_other_devices_and_tasks(site: SecureSite) -> None:
    own_start = str(topics.client_start(TASK, A))
    async with site.subscribed(A, "#") as spy, site.bare_client(MANAGER) as manager, site.bare_client(SERVER) as server:
        await manager.publish(str(topics.client_status(TASK, B)), b"1", qos=1)
        await manager.publish(str(topics.run_status(TASK, "r1")), b"2", qos=1)
        await manager.publish(str(topics.manager_status()), b"3", qos=1)
        await manager.publish(str(topics.client_stop(TASK, B)), b"4", qos=1)
        await manager.publish(str(topics.client_start("another-task", A)), b"7", qos=1)
        await server.publish(str(topics.server_metrics(TASK)), b"5", qos=1)
        await server.publish(str(topics.server_status(TASK)), b"6", qos=1)
        await manager.publish(own_start, FINE, qos=1)
        delivered = await spy.until(own_start)
    assert {message.topic for message in delivered} == {str(topics.server_status(TASK)), own_start}


@pytest.mark.parametrize(("who", "door"), [(B, "certificate"), (BY_PASSWORD, "password"), (SCREEN, "websockets")])
async def test_no_identity_connects_with_anothers_client_id(site: SecureSite, who: str, door: str) -> None:
    start = str(topics.client_start(TASK, A))
    port = getattr(site.fleet.register.ports, door)
    transport = "websockets" if door == "websockets" else "tcp"
    async with (
        site.subscribed(A, start) as victim,
        site.bare_client(who, identifier=mac_to_level(A), port=port, transport=transport),
        site.bare_client(MANAGER) as manager,
    ):
        await manager.publish(start, FINE, qos=1)
        assert [message.payload for message in await victim.until(start)] == [FINE]


async def test_the_user_name_in_connect_does_not_override_the_certificate(site: SecureSite) -> None:
    async with site.subscribed(STANDBY, ALL) as subscriber:
        async with site.bare_client(A, username=MANAGER, identifier=MANAGER) as attacker:
            with suppress(aiomqtt.MqttError):
                await attacker.publish(str(topics.client_start(TASK, B)), EVIL, qos=1)
            await attacker.publish(str(marker_of(A)), FINE, qos=1)
        delivered = await subscriber.until(str(marker_of(A)))
    assert [message.payload for message in delivered] == [FINE]


async def refused(site: SecureSite, name: str | None, **options: object) -> None:
    assert await site.refusal(name, **options) is not None


async def test_every_listener_refuses_an_unknown_identity(site: SecureSite) -> None:
    ports = site.fleet.register.ports
    await refused(site, None)
    await refused(site, None, port=ports.password)
    await refused(site, None, port=ports.password, username=mac_to_level(A), password="guess")
    await refused(site, None, port=ports.password, username=MANAGER)
    await refused(site, None, port=ports.password, username=SCREEN, password="")
    await refused(site, None, port=ports.websockets, transport="websockets")
    await refused(site, None, port=ports.websockets, transport="websockets", username=SCREEN, password="guess")


async def test_a_dashboard_connects_to_the_websockets_listener(site: SecureSite) -> None:
    port = site.fleet.register.ports.websockets
    async with site.bare_client(SCREEN, port=port, transport="websockets") as screen, site.bare_client(A) as device:
        await screen.subscribe(str(topics.client_status(TASK, A)), qos=1)
        await device.publish(str(topics.client_status(TASK, A)), FINE, qos=1)
        assert (await anext(aiter(screen.messages))).payload == FINE


async def test_a_plain_connection_to_a_tls_port_gets_no_answer(site: SecureSite) -> None:
    for port in site.fleet.register.ports.model_dump().values():
        await refused(site, A, port=port, tls_context=None)


def with_credentials(site: SecureSite, folder: Path, credentials: Credentials) -> dict[str, object]:
    """Return the options of a connection with these credentials."""
    (folder / "c.crt").write_bytes(credentials.certificate)
    (folder / "c.key").write_bytes(credentials.key)
    context = ssl.create_default_context(cafile=site.fleet.folder / "ca.crt")
    context.load_cert_chain(folder / "c.crt", folder / "c.key")
    return {"tls_context": context, "port": site.fleet.register.ports.certificate}


async def test_a_certificate_of_another_authority_is_refused(site: SecureSite, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    other = make_authority(f"fedops-mqtt fleet of {site.fleet.register.hosts[0]}", now)
    foreign = issue(other, mac_to_level(A), hosts=[], now=now, days=9)
    await refused(site, None, **with_credentials(site, tmp_path, foreign))


async def test_an_expired_certificate_is_refused(site: SecureSite, tmp_path: Path) -> None:
    ca = Credentials(
        certificate=(site.fleet.folder / "ca.crt").read_bytes(), key=(site.fleet.folder / "ca.key").read_bytes()
    )
    then = datetime.now(UTC) - timedelta(days=2)
    expired = issue(ca, mac_to_level(A), hosts=[], now=then, days=1)
    await refused(site, None, **with_credentials(site, tmp_path, expired))
    fresh = issue(ca, mac_to_level(A), hosts=[], now=datetime.now(UTC), days=1)
    async with site.bare_client(None, **with_credentials(site, tmp_path, fresh)):  # type: ignore[arg-type]
        pass


async def test_a_revoked_device_can_publish_nothing_at_once_and_cannot_reconnect(site: SecureSite) -> None:
    start = str(topics.client_start(TASK, A))
    async with (
        site.subscribed(STANDBY, ALL) as subscriber,
        site.subscribed(A, start) as living,
        site.bare_client(MANAGER) as manager,
    ):
        site.fleet.revoke(A)
        await site.reload()
        await refused(site, A)
        await living.client.publish(str(topics.client_status(TASK, A)), EVIL, qos=0)
        await manager.publish(start, b"token", qos=1)
        assert await living.delivered_by_now() == []
        async with site.bare_client(B) as other:
            await other.publish(str(marker_of(B)), FINE, qos=1)
        delivered = await subscriber.until(str(marker_of(B)))
        assert EVIL not in [message.payload for message in delivered]


async def test_a_revoked_password_is_disconnected_at_once(site: SecureSite) -> None:
    async with site.bare_client(BY_PASSWORD) as device:
        site.fleet.revoke(BY_PASSWORD)
        await site.reload()
        with pytest.raises(aiomqtt.MqttError):
            await anext(aiter(device.messages))
    with pytest.raises((aiomqtt.MqttError, KeyError)):
        async with site.bare_client(BY_PASSWORD):
            pass


async def test_a_message_of_100_mb_costs_the_broker_no_memory(site: SecureSite) -> None:
    before = psutil.Process(site.broker.pid).memory_info().rss
    async with site.subscribed(STANDBY, ALL) as subscriber:
        async with (
            asyncio.timeout(PATIENCE_S),
            site.bare_client(A, version=aiomqtt.ProtocolVersion.V311) as attacker,
            alongside(send_too_much(attacker), name="attack"),
        ):
            with pytest.raises(aiomqtt.MqttError):
                await anext(aiter(attacker.messages))
        async with site.bare_client(B) as other:
            await other.publish(str(marker_of(B)), FINE, qos=1)
        assert [message.payload for message in await subscriber.until(str(marker_of(B)))] == [FINE]
    assert peak_bytes(site.broker.pid) - before < 10 * MEGABYTE


async def send_too_much(attacker: aiomqtt.Client) -> None:
    """Publish 100 MB; without a time-out, which would raise the same error as the end of the connection."""
    with suppress(aiomqtt.MqttError):
        await attacker.publish(str(marker_of(A)), bytes(100 * MEGABYTE), qos=1, timeout=math.inf)


@pytest.mark.long
async def test_a_flood_of_connections_from_one_identity_harms_only_itself(site: SecureSite) -> None:
    start = str(topics.client_start(TASK, A))
    broker = psutil.Process(site.broker.pid)
    async with site.subscribed(A, start) as victim, site.bare_client(MANAGER) as manager:
        before, memory = broker.num_fds(), broker.memory_info().rss
        with ExitStack() as last:
            flood = Flood(site, BY_PASSWORD, last)
            waves = [asyncio.to_thread(flood.wave, NUM_FLOOD // NUM_WAVES) for _ in range(NUM_WAVES)]
            async with asyncio.TaskGroup() as group:
                under_way = [group.create_task(wave) for wave in waves]
                while not all(wave.done() for wave in under_way):
                    await manager.publish(start, FINE, qos=1)
                    assert [message.payload for message in await victim.until(start)] == [FINE], "during the flood"
            assert sum(wave.result() for wave in under_way) == NUM_FLOOD, "the broker took every one"
            assert broker.num_fds() <= before + 1, "every connection of an identity ends the one before"
        assert broker.memory_info().rss - memory < 10 * MEGABYTE


NUM_FLOOD = 10_000
NUM_WAVES = 4
"""One after the other in each, so that four are under way at any time."""


class Flood:
    """Connections by hand: a library's client costs ten times what the broker needs for one."""

    def __init__(self, site: SecureSite, who: str, last: ExitStack) -> None:
        self._last = last
        """Each wave's last connection stays open until this ends."""
        self._where = (HOST, site.fleet.register.ports.password)
        self._context = ssl.create_default_context(cafile=site.fleet.folder / "ca.crt")
        own = site.options(who)
        assert own.user is not None
        assert own.password is not None
        fields = b"".join(len(each).to_bytes(2) + each.encode() for each in ("", own.user, own.password))
        # MQTT 3.1.1, 3.1: clean session, user name and password, keep alive of 20 s.
        body = b"\x00\x04MQTT\x04\xc2\x00\x14" + fields
        self._connect = bytes([0x10, len(body)]) + body

    def wave(self, number: int) -> int:
        """Connect so many times, each while the one before is still open; return how often the broker said yes."""
        session, num_taken = None, 0
        with ExitStack() as before:
            for _ in range(number):
                secure = self._context.wrap_socket(self._reach(), server_hostname=HOST, session=session)
                secure.sendall(self._connect)
                num_taken += secure.recv(4) == b"\x20\x02\x00\x00"
                session = secure.session
                before.close()
                before.enter_context(secure)
            self._last.enter_context(before.pop_all())
        return num_taken

    def _reach(self) -> socket.socket:
        plain = socket.create_connection(self._where, timeout=PATIENCE_S)
        # A reset at the end: thousands of ports in TIME_WAIT would be this machine's trouble, not the broker's.
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return plain
