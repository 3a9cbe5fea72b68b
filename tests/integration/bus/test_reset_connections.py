"""A connection that its broker resets: what came before is read, and the end is noticed at once, in every loop."""

import os
import select
import signal
import socket
import time
from dataclasses import replace

import pytest
from bus_helpers import MAC, PATIENCE_S, QUICK, next_event
from loops import Play
from paho.mqtt import publish

from fedops_mqtt.bus import BusEvent, Connected, Connection, Disconnected, Malformed, Mosquitto
from fedops_mqtt.protocol import topics

NEVER_S = 3600
NUM_MESSAGES = 5


@pytest.mark.parametrize("writes_first", [False, True], ids=["read", "written"])
def test_what_came_before_a_reset_is_read_and_its_end_is_noticed_without_keep_alive(
    play: Play, task_id: str, caplog: pytest.LogCaptureFixture, writes_first: bool
) -> None:
    topic = str(topics.client_status(task_id, MAC))

    async def read_and_end() -> None:
        options = replace(QUICK, keepalive_s=NEVER_S)
        async with (
            Mosquitto() as broker,
            Connection(broker.url, subscriptions=[topic], options=options) as reader,
        ):
            await next_event(reader, Connected)
            assert reader._session is not None
            paho = reader._session._paho
            say_and_reset(broker, paho.socket(), topic)  # the loop stands still meanwhile
            if writes_first:  # as the loop does where the reset comes between its poll and its writer
                paho.publish(topic)
                paho.loop_write()
            events: list[BusEvent] = []
            while not any(isinstance(event, Disconnected) for event in events):
                events += await reader.drain()
            assert [type(event) for event in events] == [Malformed] * NUM_MESSAGES + [Disconnected]
            await broker.restart()  # it is dead, and not waited for yet
            await next_event(reader, Connected)

    play(read_and_end())
    assert not [record for record in caplog.records if record.name == "asyncio"]
    assert "lost the connection to the broker" in caplog.text


def say_and_reset(broker: Mosquitto, reader: socket.socket, topic: str) -> None:
    """Leave messages unread in the reader's socket, and then a reset: the broker ends with something unread itself."""
    messages = [(topic, f"message {number}", 1, False) for number in range(NUM_MESSAGES)]
    publish.multiple(messages, hostname=broker.host, port=broker.port)
    while reader.recv(65536, socket.MSG_PEEK).count(b"message") < NUM_MESSAGES:
        time.sleep(0.01)
    broker.pause()
    reader.send(b"\xc0\x00")  # PINGREQ (MQTT 5, 3.12)
    os.kill(broker.pid, signal.SIGKILL)
    poll = select.poll()
    poll.register(reader, 0)  # an error is always reported
    assert poll.poll(PATIENCE_S * 1000)
