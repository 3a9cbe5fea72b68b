"""What a hostile publisher can put into a packet beyond the payload: no reader spends time on it."""

from typing import Any

import aiomqtt
import pytest
from bus_helpers import MAC, next_status, reader_of, status
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedops_mqtt.bus import Mosquitto, PacketTooLargeError
from fedops_mqtt.protocol import encode, topics

STATUSES = "fedops/v1/+/clients/+/status"


async def test_user_properties_of_a_retained_status_are_never_unpacked(
    broker: Mosquitto, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paho copies what is left of a packet at every property: 273 KB of them would hold a reader's loop for 9 s."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.UserProperty = [("", "")] * 50_000
    said = status(task_id)
    topic = str(topics.client_status(task_id, MAC))
    async with aiomqtt.Client(broker.host, broker.port, protocol=aiomqtt.ProtocolVersion.V5) as stranger:
        await stranger.publish(topic, encode(said), qos=1, retain=True, properties=properties)
    sizes = []

    def unpack(self: Properties, buffer: bytes) -> Any:
        if self.packetType == PacketTypes.PUBLISH:
            sizes.append(len(buffer))
        return original(self, buffer)  # type: ignore[no-untyped-call]

    original = Properties.unpack
    monkeypatch.setattr(Properties, "unpack", unpack)
    async with reader_of(broker, STATUSES) as reader:
        assert reader.protocol_version == "5"
        assert await next_status(reader, lambda read: read.task_id == task_id) == said
        await reader.publish(topics.client_status(task_id, MAC), said)
        assert await next_status(reader, lambda read: read.task_id == task_id) == said
    assert max(sizes) < 1_000


async def test_a_message_above_the_brokers_packet_limit_is_an_error_and_the_connection_stays(task_id: str) -> None:
    topic = topics.client_status(task_id, MAC)
    async with Mosquitto(changes={"max_packet_size": "2000"}) as broker, reader_of(broker, STATUSES) as reader:
        with pytest.raises(PacketTooLargeError, match=r"2000.*max_packet_size"):
            await reader.publish(topic, status(task_id, reason="x" * 2000))
        assert reader.is_connected
        await reader.publish(topic, status(task_id))
        await next_status(reader, lambda read: read.task_id == task_id)
