"""Who may ask the bridge: programs of this machine, with it as their proxy too, or whoever has the URL's token."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from fedops_mqtt.bridge.app import guarded
from fedops_mqtt.runtime.http_access import MAX_BODY_BYTES, AccessRules
from fedops_mqtt.runtime.http_server import open_socket, serving

HERE = "127.0.0.1:8004"
ELSEWHERE = "ccl.example.org"
BASIC = b64encode(b"02-00-00-00-00-01:secret").decode()


async def _said(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    await JSONResponse([request.state.client_mac, len(await request.body())])(scope, receive, send)


@asynccontextmanager
async def bridge(token: str | None = None) -> AsyncIterator[int]:
    rules = AccessRules(token=token, is_for_fedops=True)
    sock = open_socket("127.0.0.1", 0)
    async with asyncio.timeout(60), serving(guarded(_said, rules), sock, rules, name="bridge", shutdown_s=1):
        yield sock.getsockname()[1]


async def answer(port: int, line: str, *headers: str, body: bytes = b"") -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "\r\n".join((f"{line} HTTP/1.1", *headers, f"Content-Length: {len(body)}"))
    writer.write(f"{head}\r\n\r\n".encode() + body)
    said = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    content = await reader.readexactly(int(said.partition("content-length: ")[2].split()[0]))
    writer.close()
    return said.split()[1] + content.decode()


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        ("GET /info/", (f"Host: {HERE}",), "200"),
        ("GET /info/", (f"Host: {ELSEWHERE}",), "421"),
        ("GET /info/", ("Host: 0.0.0.0:8004",), "421"),
        (f"GET http://{ELSEWHERE}/info/", (f"Host: {ELSEWHERE}",), "200"),
        ("PUT /FLSe/RegisterFLTask", (f"Host: {HERE}", "Origin: null"), "403"),
        (f"PUT http://{ELSEWHERE}/FLSe/RegisterFLTask", (f"Host: {ELSEWHERE}", f"Origin: http://{ELSEWHERE}"), "403"),
        ("GET /trainFin", (f"Host: {HERE}", "Sec-Fetch-Site: cross-site"), "403"),
    ],
)
async def test_without_a_token_only_programs_of_this_machine_are_answered(
    line: str, headers: tuple[str, ...], status: str
) -> None:
    async with bridge() as port:
        assert (await answer(port, line, *headers))[:3] == status


async def test_with_a_token_its_url_is_what_counts_and_names_the_client() -> None:
    async with bridge(token="secret") as port:
        assert (await answer(port, "GET /info/", f"Host: {HERE}"))[:3] == "401"
        wrong = b64encode(b"02-00-00-00-00-01:no").decode()
        assert (await answer(port, "GET /info/", f"Authorization: Basic {wrong}"))[:3] == "401"
        for header in ("Authorization", "Proxy-Authorization"):
            said = await answer(port, "GET /info/", f"Host: {ELSEWHERE}", f"{header}: Basic {BASIC}")
            assert said == '200["02:00:00:00:00:01",0]'


async def test_a_body_has_a_limit_there_too() -> None:
    async with bridge() as port:
        small = await answer(port, "PUT /x", f"Host: {HERE}", body=b"x" * 100_000)
        assert small == "200[null,100000]"
        assert (await answer(port, "PUT /x", f"Host: {HERE}", body=b"x" * (MAX_BODY_BYTES + 1)))[:3] == "413"
