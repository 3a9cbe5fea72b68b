"""A FedOps client over HTTP: who is not there, or dies over an answer, may be asked again; who refuses, not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from fedops_mqtt.bridge.peer_state import FedOpsHttpClient, FedOpsHttpError

WAIT_S = 300.0
MAC = "02:00:00:00:02:01"
REFUSAL = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"


@asynccontextmanager
async def answering(
    answer: bytes, more: bytes = b"", *, pause_s: float = 0.0, timeout_s: float = WAIT_S
) -> AsyncIterator[FedOpsHttpClient]:
    """A client that takes a request, says `answer` and is gone; or says `more` again and again, every `pause_s`."""

    over: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over.append(asyncio.Event())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        with suppress(OSError):
            while more:
                writer.write(more)
                await writer.drain()
                await asyncio.sleep(pause_s)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        over[-1].set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as http:
        port = server.sockets[0].getsockname()[1]
        yield FedOpsHttpClient(http, f"http://127.0.0.1:{port}", timeout_s=timeout_s, start_s=timeout_s)
        for each in over:  # whoever asked has hung up
            await each.wait()


@pytest.mark.parametrize(("answer", "is_absent"), [(b"", True), (REFUSAL, False)])
async def test_a_client_that_dies_over_its_start_is_absent_and_one_that_refuses_is_not(
    answer: bytes, is_absent: bool
) -> None:
    async with answering(answer) as client:
        with pytest.raises(FedOpsHttpError) as raised:
            await client.start(server_ip="127.0.0.1:1", client_mac=MAC)
    assert raised.value.is_absent is is_absent


ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n{"


async def test_an_answer_without_end_is_cut_off_by_its_size_or_by_its_time() -> None:
    async with answering(ENDLESS, b" " * 10_000) as client:
        with pytest.raises(FedOpsHttpError, match="more than 65,536 bytes"):
            await client.online()
    async with answering(ENDLESS, b" ", pause_s=0.05, timeout_s=1.0) as client:
        with pytest.raises(FedOpsHttpError, match="no answer") as raised:
            await client.online()
    assert raised.value.is_slow
