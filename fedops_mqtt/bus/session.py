"""One CONNECT to the broker, from CONNACK to the end; the only module that touches aiomqtt and paho.

A session is never used again: paho keeps unacknowledged publishes of a client object and would send them into the
next connection, where they are stale. Seen with aiomqtt 2.5.1 and paho 2.2, private and hooked on purpose:
`Client._client` (paho), because aiomqtt drops a PUBACK's reason code and a CONNACK's properties; `Client._connected`
and `._disconnected`, because a connection closed before its CONNACK would be waited for until the time-out, and the
end of one is shown to readers of messages only; `paho.Client._sock_close`, because a failed or abandoned connect
leaves the socket open; and what `paho_private` has.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import aiomqtt
import paho.mqtt.client as paho_client
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fedops_mqtt.bus.address import BrokerAddress, BusOptions
from fedops_mqtt.bus.errors import (
    ClientIdError,
    ConnectError,
    ConnectTimeoutError,
    CredentialsError,
    NotConnectedError,
    PacketTooLargeError,
    PublishRefusedError,
    PublishTimeoutError,
    VersionError,
)
from fedops_mqtt.bus.paho_private import SocketWatcher, connect_to_ip, skip_properties
from fedops_mqtt.runtime.background import raise_if_cancelled

_REFUSED_FROM = 128
"""MQTT 5, 4.13: reason codes from 0x80 are refusals."""

_VERSION_REFUSED = frozenset({1, 132})
"""CONNACK: unacceptable protocol version, in 3.1.1 (3.2.2.3) and in 5 (3.2.2.2)."""

_CLIENT_ID_REFUSED = frozenset({2, 133})
"""CONNACK: identifier rejected (3.1.1), client identifier not valid (5)."""

_CREDENTIALS_REFUSED = frozenset({4, 5, 134, 135, 140})
"""CONNACK: bad user name or password, not authorized (3.1.1 and 5), bad authentication method (5)."""

_DISCONNECT_TIMEOUT_S = 2.0
"""For the last packet of a session that is left; a stalled network must not hold up an exit."""

_MAX_PACKET_BYTES = 4 * 1024 * 1024 + 64 * 1024
"""MQTT 5, 3.1.2.11.4: a broker keeps larger packets to itself; the largest message of protocol v1 fits."""

_MAX_REMAINING_BYTES = 268_435_455
"""MQTT 5, 1.5.5: no packet is longer."""

_HEADER_BYTES = 16
"""Of a PUBLISH beside topic and payload, at most: 5 of the fixed header, 2 for the topic's length, 2 of identifier, and
what properties a broker may count."""

_AT_ONCE = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
"""Nagle's algorithm against delayed acknowledgements costs 40 ms for each 20 publishes: 450/s instead of thousands."""

OnMessage = Callable[[str, bytes, bool], None]
"""Topic, payload, retained: called in the order of arrival, from the event loop; must not raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WillPacket:
    """The last will as CONNECT carries it."""

    topic: str
    payload: bytes
    qos: int
    is_retained: bool


class _Funnel(asyncio.Queue[aiomqtt.Message]):
    """Hands each message on as it arrives; the queue itself stays empty, which nearly doubles the intake."""

    def __init__(self, on_message: OnMessage) -> None:
        super().__init__()
        self._on_message = on_message

    def put_nowait(self, item: aiomqtt.Message) -> None:
        self._on_message(item.topic.value, item.payload, item.retain)


class MqttSession:
    """A live connection; made by `open_session`."""

    def __init__(
        self,
        client: aiomqtt.Client,
        address: BrokerAddress,
        options: BusOptions,
        *,
        is_mqtt5: bool,
        max_packet_bytes: int,
    ) -> None:
        self.is_mqtt5 = is_mqtt5
        self.max_packet_bytes = max_packet_bytes
        """What the broker takes, by its CONNACK."""
        self._client = client
        self._paho = client._client
        self._address = address
        self._options = options
        self._acks: dict[int, asyncio.Future[ReasonCode]] = {}
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._paho.on_publish = self._on_puback
        client._disconnected.add_done_callback(self._on_disconnected)

    @property
    def protocol_version(self) -> str:
        """`5` or `3.1.1`."""
        return "5" if self.is_mqtt5 else "3.1.1"

    @property
    def is_idle(self) -> bool:
        """True while no publish waits for its acknowledgement."""
        return not self._acks

    async def wait_ended(self) -> str:
        """Wait for the end of the connection and return its reason."""
        return await asyncio.shield(self._ended)

    def end(self, reason: str) -> None:
        """Make `wait_ended` return; the session is then left by its owner."""
        if not self._ended.done():
            self._ended.set_result(reason)
        for ack in self._acks.values():
            if not ack.done():
                ack.set_exception(NotConnectedError(str(self._address)))

    async def publish(self, topic: str, payload: bytes, *, qos: int, is_retained: bool) -> None:
        """Publish and wait for the broker's acknowledgement.

        Raises:
            NotConnectedError: the connection has broken.
            PacketTooLargeError: it is more than the broker's CONNACK allows (MQTT 5 only).
            PublishRefusedError: the broker's reason code refuses it (MQTT 5 only; 3.1.1 has none).
            PublishTimeoutError: no acknowledgement came in time.
        """
        if len(payload) + len(topic) + _HEADER_BYTES > self.max_packet_bytes:
            raise PacketTooLargeError(topic, len(payload), self.max_packet_bytes)
        info = self._paho.publish(topic, payload, qos, is_retained)
        if info.rc != paho_client.MQTT_ERR_SUCCESS or self._ended.done():
            raise NotConnectedError(str(self._address))
        if qos == 0:
            return
        ack = self._acks[info.mid] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._options.publish_timeout_s):
                reason = await ack
        except TimeoutError as error:
            raise PublishTimeoutError(topic, self._options.publish_timeout_s) from error
        finally:
            self._acks.pop(info.mid, None)
        if reason.value >= _REFUSED_FROM:
            raise PublishRefusedError(topic, reason.value, str(reason))

    async def subscribe(self, filters: Sequence[str]) -> list[PublishRefusedError]:
        """Subscribe and return the refusals, one for each filter that the broker did not grant.

        Raises:
            NotConnectedError: the connection went, or the broker did not answer in time.
        """
        qos = self._options.subscribe_qos
        wanted: Any = [(each, SubscribeOptions(qos=qos) if self.is_mqtt5 else qos) for each in filters]
        try:
            with _swallowed_cancellation():
                granted = await self._client.subscribe(wanted, timeout=self._options.publish_timeout_s)
        except aiomqtt.MqttError as error:
            raise NotConnectedError(str(self._address)) from error
        answers = zip(filters, cast(list[ReasonCode], granted), strict=True)
        return [
            PublishRefusedError(each, code.value, str(code)) for each, code in answers if code.value >= _REFUSED_FROM
        ]

    def _on_puback(self, _client: object, _userdata: object, mid: int, reason: ReasonCode, _properties: object) -> None:
        ack = self._acks.get(mid)
        if ack and not ack.done():
            ack.set_result(reason)

    def _on_disconnected(self, disconnected: asyncio.Future[None]) -> None:
        error = None if disconnected.cancelled() else disconnected.exception()
        is_from_broker = isinstance(error, aiomqtt.MqttCodeError) and _code_of(error.rc) > _REFUSED_FROM
        # Without a reason code from the broker paho gives "unspecified error": nothing a person could act on.
        self.end(str(error) if is_from_broker else "the connection broke: the broker or the network went away")


@asynccontextmanager
async def open_session(
    address: BrokerAddress,
    options: BusOptions,
    *,
    client_id: str | None,
    is_mqtt5: bool,
    tls: ssl.SSLContext | None,
    will: WillPacket | None,
    on_message: OnMessage,
) -> AsyncIterator[MqttSession]:
    """Connect once; leaving the block disconnects cleanly, so the last will does not fire.

    Raises:
        ConnectTimeoutError: no answer came in time.
        VersionError: the broker does not take this version of MQTT.
        CredentialsError: it does not know us.
        ClientIdError: it does not take our client id.
        ConnectError: anything else: not reached, TLS failed, refused for another reason.
    """
    client = _make_client(address, options, client_id, is_mqtt5=is_mqtt5, tls=tls, will=will, on_message=on_message)
    try:
        max_packet_bytes = await _connect(client, address, options)
        session = MqttSession(client, address, options, is_mqtt5=is_mqtt5, max_packet_bytes=max_packet_bytes)
    except BaseException:
        _discard(client)
        raise
    try:
        yield session
    finally:
        session.end("left")
        await _disconnect(client)


def _make_client(
    address: BrokerAddress,
    options: BusOptions,
    client_id: str | None,
    *,
    is_mqtt5: bool,
    tls: ssl.SSLContext | None,
    will: WillPacket | None,
    on_message: OnMessage,
) -> aiomqtt.Client:
    def make_queue(maxsize: int) -> _Funnel:
        return _Funnel(on_message)

    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = _MAX_PACKET_BYTES
    client = aiomqtt.Client(
        address.host,
        address.port,
        username=address.user or options.user,
        password=address.password or options.password,
        identifier=client_id,
        queue_type=cast(type[asyncio.Queue[aiomqtt.Message]], make_queue),
        protocol=aiomqtt.ProtocolVersion.V5 if is_mqtt5 else aiomqtt.ProtocolVersion.V311,
        will=aiomqtt.Will(will.topic, will.payload, will.qos, will.is_retained) if will else None,
        clean_session=None if is_mqtt5 else True,
        properties=properties if is_mqtt5 else None,
        keepalive=options.keepalive_s,
        timeout=options.connect_timeout_s,
        tls_context=tls,
        socket_options=_AT_ONCE,
        logger=_make_error_log(),
    )
    client._client.connect_timeout = options.connect_timeout_s
    if address.ip is not None:
        connect_to_ip(client._client, address.ip, address.port)
    SocketWatcher(client)
    if is_mqtt5:
        skip_properties(client._client)
    return client


class _LastErrorHandler(logging.Handler):
    """Keeps the last error that paho logs: the reason of a failed TLS handshake."""

    last = "no reason given"

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


def _make_error_log() -> logging.Logger:
    """Return a log of one connection's own: paho would log the same error at every attempt of an outage."""
    log = logging.Logger("paho", logging.ERROR)
    log.addHandler(_LastErrorHandler())
    return log


async def _connect(client: aiomqtt.Client, address: BrokerAddress, options: BusOptions) -> int:
    """Connect and return the largest packet that the broker takes."""
    _notice_early_close(client)
    connacks: list[Properties | None] = []
    take_connack = client._on_connect

    def on_connect(*facts: Any) -> None:
        connacks.append(facts[-1])
        take_connack(*facts)

    client._client.on_connect = on_connect
    try:
        with _swallowed_cancellation():
            await client.__aenter__()
    except MqttConnectError as error:
        if _code_of(error.rc) in _CLIENT_ID_REFUSED:
            raise ClientIdError(str(address), client.identifier, str(error)) from error
        raise _refusal(error, address, options) from error
    except aiomqtt.MqttError as error:
        if "timed out" in str(error):
            raise ConnectTimeoutError(str(address), options.connect_timeout_s) from error
        raise ConnectError(str(address), str(error)) from error
    except UnicodeError as error:
        raise ConnectError(str(address), f"not a host name ({error})") from error
    _check_abilities(connacks[0], address)
    return getattr(connacks[0], "MaximumPacketSize", _MAX_REMAINING_BYTES)


def _check_abilities(connack: Properties | None, address: BrokerAddress) -> None:
    """Refuse a broker that cannot carry a status: else each publish would cost the connection (MQTT 5, 3.2.2.3)."""
    if getattr(connack, "RetainAvailable", 1) == 0:
        raise ConnectError(str(address), "it keeps no retained messages, and every status is one (retain_available)")
    if getattr(connack, "MaximumQoS", 2) == 0:
        raise ConnectError(str(address), "it takes QoS 0 only, and every status has QoS 1 (max_qos)")


@contextmanager
def _swallowed_cancellation() -> Iterator[None]:
    """Around what aiomqtt waits for: let a cancellation through that `asyncio.wait_for` dropped."""
    try:
        yield
    finally:
        raise_if_cancelled()


def _notice_early_close(client: aiomqtt.Client) -> None:
    """Let a connection that closes before its CONNACK fail at once: aiomqtt would wait for its time-out."""
    pass_on = client._on_disconnect

    def on_disconnect(*facts: Any) -> None:
        if not client._connected.done():
            reasons = "".join(
                f" ({handler.last})" for handler in client._logger.handlers if isinstance(handler, _LastErrorHandler)
            )
            closed = f"the broker closed the connection before answering{reasons}"
            client._connected.set_exception(aiomqtt.MqttError(closed))
        pass_on(*facts)

    client._client.on_disconnect = on_disconnect


def _refusal(error: MqttConnectError, address: BrokerAddress, options: BusOptions) -> ConnectError:
    code, broker = _code_of(error.rc), str(address)
    if code in _VERSION_REFUSED:
        return VersionError(broker, str(error))
    if code in _CREDENTIALS_REFUSED:
        return CredentialsError(broker, address.user or options.user, str(error))
    return ConnectError(broker, f"refused {error}")


def _code_of(code: object) -> int:
    return code.value if isinstance(code, ReasonCode) else code if isinstance(code, int) else 0


async def _disconnect(client: aiomqtt.Client) -> None:
    client.timeout = _DISCONNECT_TIMEOUT_S
    try:
        await client.__aexit__(None, None, None)
    except Exception as error:
        # What ended the connection, or a stalled network: both are over with the socket.
        if not isinstance(error, aiomqtt.MqttError | OSError):
            raise
    finally:
        _discard(client)


def _discard(client: aiomqtt.Client) -> None:
    """Close the socket, also one that a connect in its executor thread is still about to open."""
    client._client.on_socket_open = None
    client._client.on_socket_register_write = None
    client._client._sock_close()
    for future in (client._connected, client._disconnected):
        if future.done() and not future.cancelled():
            future.exception()
