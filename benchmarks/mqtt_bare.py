"""A bare MQTT 3.1.1 client for simulating fleets: one asyncio protocol, no queues, no sessions, QoS 1 out, 0 or 1 in.

It knows just what a benchmark needs; thousands of them fit into one process and leave the CPU to what is measured.
"""

import asyncio
import struct
from collections.abc import Sequence
from typing import Protocol

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, DISCONNECT = 0x10, 0x20, 0x30, 0x40, 0x82, 0x90, 0xE0
QOS1, RETAIN = 0x02, 0x01
_KEEPALIVE_S = 600
"""No pings: longer than any benchmark."""


class OnMessage(Protocol):
    """Is told of every message: whose, topic, payload, whether it is the broker's copy for a newcomer."""

    def __call__(self, connection: "BareClient", topic: str, payload: bytes, *, is_retained: bool) -> None: ...


class BareClient(asyncio.Protocol):
    """One connection; `on_message` is called with what comes. Await `connect`, then `subscribe`, `publish`."""

    def __init__(self, client_id: str, on_message: OnMessage, will: tuple[str, bytes]) -> None:
        self._client_id, self._on_message, self._will = client_id, on_message, will
        self._buffer = bytearray()
        self._next_id = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._lost = asyncio.Event()
        self.transport: asyncio.Transport | None = None

    async def connect(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        done = self._waiting[0] = loop.create_future()
        await loop.create_connection(lambda: self, host, port)
        topic, payload = self._will
        flags = 0x02 | 0x04 | QOS1 << 2 | 0x20  # clean session, a will, its QoS, retained
        head = _text("MQTT") + bytes([4, flags]) + struct.pack("!H", _KEEPALIVE_S)
        self._send(CONNECT, head + _text(self._client_id) + _text(topic) + struct.pack("!H", len(payload)) + payload)
        await done

    async def subscribe(self, filters: Sequence[str]) -> None:
        number, done = self._expect()
        self._send(SUBSCRIBE, struct.pack("!H", number) + b"".join(_text(each) + b"\x01" for each in filters))
        await done

    async def publish(self, topic: str, payload: bytes, *, is_retained: bool) -> None:
        """Publish at QoS 1 and wait until the broker has it."""
        number, done = self._expect()
        self._send(PUBLISH | QOS1 | is_retained, _text(topic) + struct.pack("!H", number) + payload)
        await done

    async def wait_lost(self) -> None:
        """Wait until the connection is gone."""
        await self._lost.wait()

    def die(self) -> None:
        """Close the connection without a word, as a killed process does."""
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self._lost.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError(f"{self._client_id} was cut off: {error}"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (packet := self._take_packet()) is not None:
            kind, body = packet
            if kind & 0xF0 == PUBLISH:
                self._take_message(kind, body)
            elif kind == CONNACK:
                self._resolve(0)
            else:
                self._resolve(int.from_bytes(body[:2], "big"))

    def _take_packet(self) -> tuple[int, bytes] | None:
        length, shift, at = 0, 0, 1
        while True:
            if at >= len(self._buffer):
                return None
            byte = self._buffer[at]
            length |= (byte & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if byte < 0x80:
                break
        if len(self._buffer) < at + length:
            return None
        kind, body = self._buffer[0], bytes(self._buffer[at : at + length])
        del self._buffer[: at + length]
        return kind, body

    def _take_message(self, kind: int, body: bytes) -> None:
        end = 2 + int.from_bytes(body[:2], "big")
        topic, qos = body[2:end].decode(), kind >> 1 & 3
        if qos:
            self._send(PUBACK, body[end : end + 2])
        self._on_message(self, topic, body[end + 2 * bool(qos) :], is_retained=bool(kind & RETAIN))

    def _expect(self) -> tuple[int, asyncio.Future[None]]:
        self._next_id = self._next_id % 65535 + 1
        done = self._waiting[self._next_id] = asyncio.get_running_loop().create_future()
        return self._next_id, done

    def _resolve(self, number: int) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _send(self, kind: int, body: bytes) -> None:
        assert self.transport is not None
        length, size = bytearray(), len(body)
        while True:
            size, low = divmod(size, 128)
            length.append(low | (0x80 if size else 0))
            if not size:
                break
        self.transport.write(bytes([kind]) + bytes(length) + body)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("!H", len(encoded)) + encoded
