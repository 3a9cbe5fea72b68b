"""A fleet with its broker as `fedops-mqtt fleet` makes them, and MQTT clients with any credentials."""

import asyncio
import queue
import socket
import ssl
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
from ports import free_port

from fedops_mqtt.bus import BusEvent, BusOptions, Connected, Connection, Mosquitto
from fedops_mqtt.bus.mosquitto import find_config
from fedops_mqtt.enrolment import EnrolmentRequest, FleetFolder, Ports, Role, init_fleet
from fedops_mqtt.protocol import mac_to_level

HOST = "127.0.0.1"
PATIENCE_S = 300.0
TASK = "digits"
A = "02:00:00:00:00:0a"
B = "02:00:00:00:00:0b"
VERSIONS = (aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5)

MANAGER = "manager"
SERVER = "server-digits"
SCREEN = "screen"
STANDBY = "manager-b"
"""A second manager: it receives everything, beside what the first one publishes."""
PROBE = "probe"
BY_PASSWORD = "02:00:00:00:00:0c"


def _refusal_of(bare: aiomqtt.Client) -> str | None:
    """Connect with paho's own callbacks: aiomqtt does not report a connection that ends before its CONNACK."""
    answers: queue.Queue[str | None] = queue.Queue()
    client = bare._client
    client.on_connect = lambda _client, _data, _flags, reason, _properties: answers.put(
        str(reason) if reason.is_failure else None
    )
    client.on_disconnect = lambda _client, _data, _flags, reason, _properties: answers.put(f"the end: {reason}")
    client.on_socket_open = client.on_socket_close = client.on_socket_register_write = None
    client.on_socket_unregister_write = None
    try:
        client.connect(HOST, bare._port)
    except OSError as error:  # the TLS or WebSocket handshake
        return f"the end: {error}"
    client.loop_start()
    try:
        return answers.get(timeout=PATIENCE_S)
    finally:
        client.disconnect()
        client.loop_stop()


def make_fleet(folder: Path) -> FleetFolder:
    """A fleet of two devices with certificates and one with a password, an FL server and a dashboard."""
    ports = Ports(certificate=free_port(), password=free_port(), websockets=free_port())
    shipped = find_config("mosquitto.conf").parent
    fleet = init_fleet(folder, hosts=[HOST], shipped=shipped, ports=ports)
    for mac in (A, B):
        fleet.enrol(EnrolmentRequest(role=Role.DEVICE, name=mac, tasks=[TASK], app="fedops_mqtt.demo:client_app"))
    fleet.enrol(EnrolmentRequest(role=Role.DEVICE, name=BY_PASSWORD, tasks=[TASK], has_password=True))
    fleet.enrol(EnrolmentRequest(role=Role.MANAGER, name=STANDBY))
    fleet.enrol(EnrolmentRequest(role=Role.DASHBOARD, name=PROBE))
    fleet.enrol(EnrolmentRequest(role=Role.SERVER, name=SERVER, tasks=[TASK], hosts=[HOST]))
    fleet.enrol(EnrolmentRequest(role=Role.DASHBOARD, name=SCREEN, has_password=True))
    return fleet


@dataclass(frozen=True)
class DeliveredMessage:
    """A message as it was delivered."""

    topic: str
    payload: bytes


class SecureSite:
    """A fleet and its running broker."""

    def __init__(self, fleet: FleetFolder, broker: Mosquitto) -> None:
        self.fleet = fleet
        self.broker = broker

    def bundle(self, name: str) -> Path:
        level = mac_to_level(name) if ":" in name else name
        return self.fleet.folder / "bundles" / level / "bundle.toml"

    def options(self, name: str) -> BusOptions:
        """How an identity's own programs would connect."""
        written = tomllib.loads(self.bundle(name).read_text())
        folder, present = self.bundle(name).parent, [key for key in FILES if f"broker_{key}" in written]
        files = {key: folder / written[f"broker_{key}"] for key in present}
        return BusOptions(
            user=written["broker_user"], password=written.get("broker_password"), backoff_initial_s=0.05, **files
        )

    def url(self, name: str) -> str:
        return str(tomllib.loads(self.bundle(name).read_text())["broker"])

    def bare_client(
        self,
        name: str | None,
        *,
        version: aiomqtt.ProtocolVersion = aiomqtt.ProtocolVersion.V5,
        port: int | None = None,
        **options: Any,
    ) -> aiomqtt.Client:
        """A bare MQTT client with an identity's credentials, or none, for what our own programs would never do."""
        settings: dict[str, Any] = {}
        context = ssl.create_default_context(cafile=self.fleet.folder / "ca.crt")
        default_port = self.fleet.register.ports.certificate
        if name is not None:
            own = self.options(name)
            settings["username"] = own.user
            if own.password is not None:
                default_port, settings["password"] = self.fleet.register.ports.password, own.password
            else:
                assert own.cert_file is not None
                context.load_cert_chain(own.cert_file, own.key_file)
        settings |= {"tls_context": context, "protocol": version, "timeout": PATIENCE_S} | options
        return aiomqtt.Client(HOST, port or default_port, **settings)

    async def refusal(self, name: str | None, **options: Any) -> str | None:
        """Connect and return how the broker refused it: a reason code, or the end of the connection; None: it did not.

        A broker that does not answer is no refusal: that fails after PATIENCE_S.
        """
        return await asyncio.to_thread(_refusal_of, self.bare_client(name, **options))

    @asynccontextmanager
    async def subscribed(self, name: str, *filters: str) -> AsyncIterator["Subscriber"]:
        """An identity that is subscribed when the block begins, whether the broker means it or not."""
        async with self.bare_client(name) as client:
            for each in filters:
                await client.subscribe(each, qos=1)
            yield Subscriber(client)

    @asynccontextmanager
    async def reading(self, name: str, *filters: str) -> AsyncIterator[Connection]:
        """An identity's own bus, as our programs use it."""
        async with Connection(self.url(name), subscriptions=filters, options=self.options(name)) as connection:
            await next_event(connection, lambda event: isinstance(event, Connected))
            yield connection

    async def reload(self) -> None:
        """Let the broker read its files again and wait until it has."""
        assert self.fleet.reload_broker()
        # Signals are handled before the next packet: a fresh connection's answer comes after the reload.
        async with self.bare_client(PROBE):
            pass


FILES = ("ca_file", "cert_file", "key_file")


class Subscriber:
    """The messages that the broker delivers to one client."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client

    async def delivered_by_now(self) -> list[DeliveredMessage]:
        """Return what came and was not looked at: an answer on the same connection comes after all of it."""
        await self.client.unsubscribe("a/round/trip")
        return [_delivered(self.client._queue.get_nowait()) for _ in range(self.client._queue.qsize())]

    async def until(self, topic: str, payload: bytes | None = None) -> Sequence[DeliveredMessage]:
        """Return everything up to and with a message on `topic`: what is not in it was not delivered."""
        delivered: list[DeliveredMessage] = []
        async with asyncio.timeout(PATIENCE_S):
            async for message in self.client.messages:
                delivered.append(_delivered(message))
                if delivered[-1].topic == topic and payload in (None, delivered[-1].payload):
                    return delivered
        raise AssertionError("messages end only with their client")


def _delivered(message: aiomqtt.Message) -> DeliveredMessage:
    return DeliveredMessage(str(message.topic), bytes(message.payload or b""))  # type: ignore[arg-type]


async def next_event(connection: Connection, is_wanted: Callable[[BusEvent], bool]) -> BusEvent:
    async with asyncio.timeout(PATIENCE_S):
        async for event in connection.events():
            if is_wanted(event):
                return event
    raise AssertionError("events end only with their connection")


def vanish(client: aiomqtt.Client) -> None:
    """End a client's connection without a goodbye: its last will is due."""
    sock = client._client.socket()
    assert sock is not None
    socket.socket.shutdown(sock, socket.SHUT_RDWR)
