"""A dashboard of one's own in a browser: Chromium speaks MQTT to the secure broker's WebSockets listener."""

import tomllib
from pathlib import Path

import pytest
from browsing import visiting
from secure_site import HOST, SCREEN, TASK, A, SecureSite, make_fleet

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.protocol import topics

pytestmark = pytest.mark.long

_READ_ONE = """({url, user, password, filter}) => new Promise((resolve, reject) => {
  const text = (value) => {
    const bytes = new TextEncoder().encode(value);
    return [bytes.length >> 8, bytes.length & 255, ...bytes];
  };
  const packet = (head, body) => new Uint8Array([head, body.length, ...body]);
  const socket = new WebSocket(url, 'mqtt');
  socket.binaryType = 'arraybuffer';
  socket.onclose = (event) => reject(new Error(`closed: ${event.code}`));
  // MQTT 3.1.1: CONNECT with a clean session, user name and password; SUBSCRIBE at QoS 0.
  socket.onopen = () => socket.send(packet(0x10, [
    ...text('MQTT'), 4, 0xc2, 0, 20, ...text(''), ...text(user), ...text(password)]));
  socket.onmessage = ({data}) => {
    const bytes = new Uint8Array(data);
    if (bytes[0] === 0x20 && bytes[3] !== 0) reject(new Error(`refused: ${bytes[3]}`));
    if (bytes[0] === 0x20) socket.send(packet(0x82, [0, 1, ...text(filter), 0]));
    if (bytes[0] >> 4 === 3) {
      const end = 4 + bytes[2] * 256 + bytes[3];
      const read = (from, to) => new TextDecoder().decode(bytes.slice(from, to));
      resolve({topic: read(4, end), payload: read(end, bytes.length)});
    }
  };
})"""


async def test_a_page_in_a_browser_reads_the_fleet_over_websockets(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    own = str(topics.client_status(TASK, A))
    async with Mosquitto(config=fleet.broker_folder / "mosquitto.conf") as broker:
        site = SecureSite(fleet, broker)
        async with site.bare_client(A) as device:
            await device.publish(own, b"online", qos=1, retain=True)
        # The fleet's CA is not in this browser's store, as it is in that of whoever looks at dashboards.
        async with visiting(ignore_https_errors=True) as visitor:
            heard = await visitor.page.evaluate(
                _READ_ONE,
                {
                    "url": f"wss://{HOST}:{fleet.register.ports.websockets}/mqtt",
                    "user": SCREEN,
                    "password": tomllib.loads(site.bundle(SCREEN).read_text())["broker_password"],
                    "filter": "fedops/v1/+/clients/+/status",
                },
            )
    assert heard == {"topic": own, "payload": "online"}
