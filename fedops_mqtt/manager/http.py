"""The manager's HTTP door: where it listens, who may come in, how much a body may hold.

Beyond this machine it opens only with a token, and tokens are compared in constant time.
"""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedops_mqtt.line.token import is_same_secret
from fedops_mqtt.manager.api import problem
from fedops_mqtt.manager.errors import ExposedApiError

MAX_BODY_BYTES = 1024 * 1024
"""20,000 named clients are 400 kB."""

SHUTDOWN_S = 2
"""Requests still open when the manager ends are cut after this."""


class Door:
    """ASGI middleware: bearer token (if there is one) and body limit."""

    def __init__(self, app: ASGIApp, *, token: str | None, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._token = token
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer 401 or 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not self._may_enter(headers.get(b"authorization", b"")):
            refusal = problem(
                HTTPStatus.UNAUTHORIZED, "this API needs its bearer token", headers={"WWW-Authenticate": "Bearer"}
            )
            await refusal(scope, receive, send)
        elif (body := await self._read_body(headers, receive)) is None:
            limit = f"the body is over {self._max_body_bytes} bytes"
            await problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, limit)(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)

    def _may_enter(self, authorization: bytes) -> bool:
        if self._token is None:
            return True
        scheme, _, given = authorization.decode("latin-1").partition(" ")
        return is_same_secret(given.strip(), self._token) and scheme.lower() == "bearer"

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Return the whole body, or None as soon as it is too large."""
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            return None
        body = bytearray()
        is_more = True
        while is_more:
            part = await receive()
            body += part.get("body", b"")
            is_more = part.get("more_body", False)
            if len(body) > self._max_body_bytes:
                return None
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that hands out the body that was read, then what comes after it."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return unread.pop() if unread else await receive()

    return replayed


def listen(address: str, *, token: str | None) -> socket.socket:
    """Return a socket that listens at `host:port`; port 0 takes a free one.

    Raises:
        ExposedApiError: the host is beyond this machine and there is no token.
        OSError: the address is taken or is none of this machine.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104 - refused just below without a token
    if token is None and not _is_loopback(host):
        raise ExposedApiError(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=family)


def url_of(listening: socket.socket) -> str:
    """Return the URL under which a listening socket is reached from this machine."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def serving(app: ASGIApp, listening: socket.socket) -> AsyncIterator[None]:
    """Serve an application while the block runs."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
    server = _Server(config)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[listening]), name="manager-api")
        try:
            yield
        finally:
            server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: when the manager ends is the manager's to say."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
