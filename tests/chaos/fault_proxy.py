"""A TCP proxy that stands between one process and its server and goes wrong when told to.

It forwards packets and knows only as much of MQTT as it takes to tell one from the next, and a PUBACK from the rest
(MQTT 5, 3.4: packet type 4); what is not MQTT goes through as it comes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

_CHUNK_BYTES = 65536
_PUBACK = 4


class Packets:
    """Cuts a stream of MQTT packets apart; give it bytes, it returns whole packets."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        self._rest += data
        packets: list[bytes] = []
        while (size := _packet_bytes(self._rest)) is not None and len(self._rest) >= size:
            packets.append(self._rest[:size])
            self._rest = self._rest[size:]
        return packets


def _packet_bytes(data: bytes) -> int | None:
    """Return how long the first packet is (MQTT 5, 1.5.5 variable byte integer), None when that is still to come."""
    length = 0
    for at, byte in enumerate(data[1:5]):
        length |= (byte & 0x7F) << (7 * at)
        if not byte & 0x80:
            return 2 + at + length
    return None


class FaultProxy:
    """Forwards to `host:port` until told otherwise; every fault ends with `heal`."""

    def __init__(self, host: str, port: int, *, is_mqtt: bool = True) -> None:
        self._target = (host, port)
        self._is_mqtt = is_mqtt
        self._flows = asyncio.Event()
        self._flows.set()
        self._links: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self.delay_s = 0.0
        self.loses_pubacks = False
        self.swallows: Callable[[bytes], bool] = lambda packet: False
        """Sees each packet for the broker; one for which it returns True goes no further."""
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FaultProxy"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            try:
                yield self
            finally:
                self.heal()
                self.cut()

    @property
    def url(self) -> str:
        """Where a client of the broker finds it."""
        return f"mqtt://{self.address}"

    def cut(self) -> None:
        """Reset every connection, on both sides."""
        for near, far in self._links:
            near.transport.abort()
            far.transport.abort()

    def half_open(self) -> None:
        """The broker's side is gone, the other side hears nothing of it; what comes new waits as well."""
        self._flows.clear()
        for _, far in self._links:
            far.transport.abort()

    def stall(self) -> None:
        """Both sides stay connected and nothing passes."""
        self._flows.clear()

    def heal(self) -> None:
        """Everything passes at once; connections that lost a side are closed."""
        self.delay_s = 0.0
        self.loses_pubacks = False
        self._flows.set()

    async def _serve(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        await self._flows.wait()
        try:
            far_in, far_out = await asyncio.open_connection(*self._target)
        except OSError:
            near_out.transport.abort()
            return
        link = (near_out, far_out)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(near_in, far_out), name="to-broker")
                group.create_task(self._pump(far_in, near_out, from_broker=True), name="from-broker")
        finally:
            self._links.discard(link)
            near_out.transport.abort()
            far_out.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, from_broker: bool = False
    ) -> None:
        packets = Packets()
        with suppress(OSError):
            while data := await source.read(_CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._flows.wait()
                whole = packets.feed(data) if self._is_mqtt else [data]
                sink.writelines(each for each in whole if not self._is_lost(each, from_broker=from_broker))
                await sink.drain()
        await self._flows.wait()
        sink.transport.abort()

    def _is_lost(self, packet: bytes, *, from_broker: bool) -> bool:
        if from_broker:
            return self.loses_pubacks and packet[0] >> 4 == _PUBACK
        return self.swallows(packet)
