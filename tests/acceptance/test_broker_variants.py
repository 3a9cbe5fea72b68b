"""The other ways to run the broker: with the dynamic-security plugin, and a site's broker joined to a central one."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiomqtt
import pytest
from secure_site import BY_PASSWORD, HOST, MANAGER, SCREEN, STANDBY, TASK, A, B, SecureSite, make_fleet

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.bus.mosquitto import find_config
from fedops_mqtt.enrolment import EnrolmentRequest, Role
from fedops_mqtt.enrolment.broker_files import render_dynamic_security_config
from fedops_mqtt.protocol import mac_to_level, topics

ALL = "fedops/v1/#"


@pytest.fixture
async def dynamic(tmp_path: Path) -> AsyncIterator[SecureSite]:
    """A broker with the plugin; one dashboard, with its password, was revoked before."""
    fleet = make_fleet(tmp_path / "fleet")
    fleet.revoke(SCREEN)
    fleet.write_dynamic_security()
    async with Mosquitto(config=fleet.broker_folder / "mosquitto.dynsec.conf") as broker:
        yield SecureSite(fleet, broker)


async def test_with_the_plugin_everybody_may_do_the_same_as_with_the_acl(dynamic: SecureSite) -> None:
    own, start = str(topics.client_status(TASK, A)), str(topics.client_start(TASK, A))
    async with (
        dynamic.subscribed(STANDBY, ALL) as subscriber,
        dynamic.subscribed(A, start) as device,
        dynamic.subscribed(BY_PASSWORD, str(topics.client_start(TASK, BY_PASSWORD))) as other,
        dynamic.bare_client(MANAGER) as manager,
    ):
        for topic in (topics.client_status(TASK, B), topics.client_start(TASK, BY_PASSWORD), topics.manager_status()):
            await device.client.publish(str(topic), b"evil", qos=0, retain=True)
        await device.client.publish(own, b"fine", qos=1, retain=True)
        assert [message.payload for message in await subscriber.until(own)] == [b"fine"]
        await manager.publish(start, b"token", qos=1)
        assert [message.payload for message in await device.until(start)] == [b"token"]
        assert await other.delivered_by_now() == []


async def test_the_plugin_knows_who_was_revoked(dynamic: SecureSite) -> None:
    with pytest.raises(aiomqtt.MqttError):
        async with dynamic.bare_client(SCREEN):
            pass


CONTROL = "$CONTROL/dynamic-security/v1"


def disable(name: str) -> bytes:
    return json.dumps({"commands": [{"command": "disableClient", "username": name}]}).encode()


async def test_the_plugin_takes_a_revocation_while_it_runs_from_the_manager_only(
    dynamic: SecureSite,
) -> None:
    """What `mosquitto_ctrl dynsec disableClient` sends."""
    level = mac_to_level(BY_PASSWORD)
    async with (
        dynamic.bare_client(BY_PASSWORD) as device,
        dynamic.bare_client(A) as other,
        dynamic.subscribed(STANDBY, ALL) as subscriber,
    ):
        with suppress(aiomqtt.MqttError):
            await other.publish(CONTROL, disable(level), qos=1)
        await device.publish(str(topics.client_metrics(TASK, BY_PASSWORD)), b"still here", qos=1)
        await subscriber.until(str(topics.client_metrics(TASK, BY_PASSWORD)), b"still here")
        async with dynamic.bare_client(MANAGER) as manager:
            await manager.publish(CONTROL, disable(level), qos=1)
            with pytest.raises(aiomqtt.MqttError):
                await anext(aiter(device.messages))
    assert "ot authori" in str(await dynamic.refusal(BY_PASSWORD))


async def test_the_plugins_file_follows_the_fleet(dynamic: SecureSite) -> None:
    assert dynamic.fleet.has_plugin
    credentials = dynamic.options(BY_PASSWORD)
    dynamic.fleet.revoke(BY_PASSWORD)
    await dynamic.broker.restart()
    where = {"port": dynamic.fleet.register.ports.password}
    assert "ot authori" in str(
        await dynamic.refusal(None, username=credentials.user, password=credentials.password, **where)
    )
    async with dynamic.bare_client(A):
        pass


def test_the_shipped_variant_is_the_shipped_configuration_with_the_plugin(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    register = fleet.register.model_copy(update={"broker_dir": "/etc/mosquitto/fedops"})
    made = render_dynamic_security_config(find_config("mosquitto.conf").read_text(), register)
    shipped = find_config("mosquitto.dynsec.conf").read_text()
    assert [line for line in made.splitlines() if not line.startswith("plugin ")] == [
        line for line in shipped.splitlines() if not line.startswith("plugin ")
    ]


MAX_LINES_A_REASON = 5
"""So many may stand below one comment."""


@pytest.mark.parametrize("name", ["mosquitto.dev.conf", "mosquitto.conf", "mosquitto.dynsec.conf", "bridge.conf"])
def test_every_line_of_a_shipped_configuration_has_its_reason(name: str) -> None:
    lines = find_config(name).read_text().splitlines()
    explained: set[str] = set()
    for number, line in enumerate(lines):
        directive = line.partition(" ")[0]
        if not line or line.startswith("#") or directive in explained:
            continue
        above = lines[max(0, number - MAX_LINES_A_REASON) : number]
        paragraph = above[len(above) - above[::-1].index("") :] if "" in above else above
        assert [each for each in paragraph if re.match("# [^-]", each)], f"{name}:{number + 1}: why {line!r}?"
        explained.add(directive)


@pytest.fixture
async def centre(tmp_path: Path) -> AsyncIterator[SecureSite]:
    fleet = make_fleet(tmp_path / "centre")
    fleet.enrol(EnrolmentRequest(role=Role.BRIDGE, name="site-a", tasks=[TASK]))
    async with Mosquitto(config=fleet.broker_folder / "mosquitto.conf") as broker:
        yield SecureSite(fleet, broker)


@pytest.fixture
async def outpost(tmp_path: Path, centre: SecureSite) -> AsyncIterator[SecureSite]:
    """A site with a fleet of its own whose broker has the shipped bridge lines."""
    fleet = make_fleet(tmp_path / "outpost")
    bridge = find_config("bridge.conf").read_text()
    bridge = bridge.replace("/etc/mosquitto/fedops/bridge", str(centre.bundle("site-a").parent))
    bridge = bridge.replace("broker.example.org:8883", f"{HOST}:{centre.fleet.register.ports.certificate}")
    config = fleet.broker_folder / "mosquitto.conf"
    config.write_text(config.read_text() + bridge)
    async with Mosquitto(config=config) as broker:
        yield SecureSite(fleet, broker)


async def test_a_device_at_a_site_is_seen_at_the_centre_and_started_from_there(
    centre: SecureSite, outpost: SecureSite
) -> None:
    own, start = str(topics.client_status(TASK, A)), str(topics.client_start(TASK, A))
    async with (
        centre.subscribed(STANDBY, own) as subscriber,
        centre.bare_client(MANAGER) as manager,
        outpost.subscribed(A, start) as device,
    ):
        await device.client.publish(own, b"online", qos=1, retain=True)
        assert [message.payload for message in await subscriber.until(own)] == [b"online"]
        await manager.publish(start, b"token", qos=1)
        assert [message.payload for message in await device.until(start)] == [b"token"]


async def test_statuses_of_a_site_during_an_outage_are_forwarded_after_it(
    centre: SecureSite, outpost: SecureSite
) -> None:
    own = str(topics.client_status(TASK, A))
    async with outpost.bare_client(A) as device:
        async with centre.subscribed(STANDBY, own) as subscriber:
            await device.publish(own, b"online", qos=1, retain=True)
            await subscriber.until(own, b"online")
        await centre.broker.terminate()
        await device.publish(own, b"train-started", qos=1, retain=True)
        await centre.broker.start()
        async with centre.subscribed(STANDBY, own) as subscriber:
            await subscriber.until(own, b"train-started")


async def test_a_sites_identity_starts_no_client_at_the_centre(centre: SecureSite) -> None:
    start, own = str(topics.client_start(TASK, A)), str(topics.client_status(TASK, A))
    async with centre.subscribed(STANDBY, ALL) as subscriber, centre.bare_client("site-a") as thief:
        await thief.publish(start, b"evil", qos=0)
        await thief.publish(str(topics.client_status("another-task", A)), b"evil", qos=0)
        await thief.publish(own, b"fine", qos=1)
        assert [message.payload for message in await subscriber.until(own)] == [b"fine"]
