"""What a stranger's connections may cost an HTTP address: places, time and memory have limits, the log has one too."""

import asyncio
import logging
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from loops import HANGS_S, Play
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from fedops_mqtt.runtime import http_server
from fedops_mqtt.runtime.http_access import AccessRules
from fedops_mqtt.runtime.http_server import connections_within, open_socket, serving

HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
WHOLE = HALF + b"\r\n"


async def _answer(request: Request) -> JSONResponse:
    return JSONResponse({"size": len(await request.body())})


async def _stream(request: Request) -> StreamingResponse:
    async def forever() -> AsyncIterator[bytes]:
        yield b"begun\n"
        await asyncio.Event().wait()

    return StreamingResponse(forever())


APP = Starlette(routes=[Route("/", _answer, methods=["GET", "POST"]), Route("/stream", _stream)])


class Site:
    """A served address, and connections to it that are closed in the end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._open: list[asyncio.StreamWriter] = []

    async def connect(self, first: bytes = b"", host: str = "127.0.0.1") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(host, 0))
        self._open.append(writer)
        writer.write(first)
        return reader

    async def status(self, request: bytes = WHOLE, host: str = "127.0.0.1") -> int:
        return int((await (await self.connect(request, host)).readuntil(b"\r\n")).split()[1])

    def write(self, data: bytes) -> None:
        """Write on the newest connection."""
        self._open[-1].write(data)

    def hang_up(self) -> None:
        for writer in self._open:
            writer.transport.abort()


@asynccontextmanager
async def site(max_connections: int = 100, shutdown_s: int = 1) -> AsyncIterator[Site]:
    sock = open_socket("127.0.0.1", 0)
    made = Site(sock.getsockname()[1])
    serve = serving(APP, sock, AccessRules(), name="test", shutdown_s=shutdown_s, max_connections=max_connections)
    try:
        async with serve:
            yield made
    finally:
        made.hang_up()


async def _end_of(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        await reader.read()


def test_endless_half_requests_block_no_other_client(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with site(max_connections=20) as served:
            halves = [await served.connect(HALF) for _ in range(400)]
            assert await served.status() == 200
            await asyncio.gather(*map(_end_of, halves[:380]))

    play(test())
    assert len(caplog.records) <= 1


def test_active_connections_are_never_closed_for_a_new_one_and_a_peer_cannot_have_all(play: Play) -> None:
    async def test() -> None:
        async with site(max_connections=20) as served:
            streams = [await served.connect(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(15)]
            for stream in streams:
                await stream.readuntil(b"begun")
            await _end_of(await served.connect(WHOLE))
            assert await served.status(host="127.0.0.2") == 200
            assert not any(stream.at_eof() for stream in streams)

    play(test())


def test_an_idle_connection_after_its_answer_gives_way_too(play: Play) -> None:
    async def test() -> None:
        async with site(max_connections=8) as served:
            answered = [await served.connect(WHOLE) for _ in range(6)]
            for reader in answered:
                await reader.readuntil(b"}")
            assert await served.status() == 200
            await _end_of(answered[0])

    play(test())


@pytest.mark.long
def test_a_connection_that_a_client_keeps_for_the_next_request_is_not_closed_under_it(play: Play) -> None:
    """httpx keeps one 5 s; a server that closes it at that moment makes the request fail."""

    async def test() -> None:
        async with site() as served:
            reader = await served.connect(WHOLE)
            await reader.readuntil(b"}")
            await asyncio.sleep(7)
            served.write(WHOLE)
            assert (await reader.readuntil(b"\r\n")).split()[1] == b"200"

    play(test())


def test_a_head_has_a_limit_of_time_and_a_request_in_time_has_none(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with site() as served:
            stream = await served.connect(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.readuntil(b"begun")
            monkeypatch.setattr(http_server, "HEAD_S", 0.2)  # the stream's own head was not bound by it
            for part in (b"", HALF, WHOLE + HALF, b"POST / HTTP/1.1\r\nHost: x\r\n\r\n" + HALF):
                await _end_of(await served.connect(part))
            assert not stream.at_eof()

    play(test())


@pytest.mark.parametrize(
    "request_of",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: %b",
        b"GET /%b",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nTrailer: %b",
    ],
    ids=["a header", "the path", "a whole head", "a trailer"],
)
def test_a_head_has_a_limit_of_bytes(play: Play, request_of: bytes) -> None:
    async def test() -> None:
        async with site() as served:
            reader = await served.connect(request_of % (b"x" * 10_000_000))
            head = b""
            with suppress(ConnectionError):
                head = await reader.read()
            assert not head or head.split()[1] in (b"400", b"431")
            assert await served.status() == 200

    play(test())


def test_a_body_may_be_larger_than_a_head_and_its_chunks_tiny(play: Play) -> None:
    async def test() -> None:
        async with site() as served:
            body = b"1\r\nx\r\n" * 20_000
            head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            reader = await served.connect(head + body + b"0\r\n\r\n")
            assert await reader.readuntil(b"}") != b""
            assert (
                await served.status(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + b"x" * 500_000)
                == 200
            )

    play(test())


def test_requests_that_are_none_are_not_logged(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with site() as served:
            for _ in range(50):
                assert await served.status(b"\x16\x03\x01 no request\r\n\r\n") == 400

    play(test())
    assert caplog.records == []


def test_a_stream_ends_with_its_server_and_without_a_traceback(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with site(shutdown_s=10 * HANGS_S) as served:
            stream = await served.connect(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.readuntil(b"begun")
        await _end_of(stream)

    play(test())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_where_descriptors_are_used_up_it_goes_on_afterwards(
    play: Play, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def test() -> None:
        async with site() as served:
            assert await served.status() == 200
            logged = asyncio.Event()
            monkeypatch.setattr(caplog.handler, "emit", lambda record: (caplog.records.append(record), logged.set()))
            with socket.socket() as late, socket.socket() as lowest_free:
                first_free = lowest_free.fileno()
                lowest_free.close()
                resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
                try:
                    late.connect(("127.0.0.1", served.port))
                    late.sendall(WHOLE)
                    await logged.wait()
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                late.settimeout(HANGS_S)
                assert b" 200 " in await asyncio.to_thread(late.recv, 100)

    play(test())
    [record] = caplog.records
    assert record.exc_info is None
    assert "Too many open files" in record.why  # type: ignore[attr-defined]


def test_file_descriptors_are_reserved_for_everything_else() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert connections_within(64) == 64
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256
        assert connections_within(10**9) < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
