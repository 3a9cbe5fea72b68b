"""An HTTP address while it is served: the client's shim, the manager's API, the bridge and the line listen alike.

uvicorn serves in the caller's event loop and leaves signals alone.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from starlette.types import ASGIApp

from fedops_mqtt.runtime.http_access import AccessRules, check_address
from fedops_mqtt.runtime.http_server import HttpServer

BACKLOG = 4096
"""Connections that the kernel keeps until they are accepted; fewer, and a fleet that comes back at once is refused."""
MAX_CONNECTIONS = 4096
"""Of one address, unless its caller says another number."""

WebSockets = Literal["none", "websockets-sansio"]


def split_address(address: str, *, default_host: str) -> tuple[str, int]:
    """Return host and port of `host:port`, `[::1]:port` or `:port`.

    Raises:
        ValueError: the port is no number.
    """
    host, _, port = address.rpartition(":")
    return host.strip("[]") or default_host, int(port)


def listen(address: str, rules: AccessRules, *, what: str, setting: str, default_host: str) -> socket.socket:
    """Return a socket that listens at `host:port`; port 0 takes a free one. `what` and `setting` are for the error.

    Raises:
        ExposedError: the host is beyond this machine and anybody would be let in.
        OSError: the address is taken, or none of this machine's.
        ValueError, OverflowError: there is no such port.
    """
    host, port = split_address(address, default_host=default_host)
    check_address(host, address, rules, what=what, setting=setting)
    return open_socket(host, port)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        OSError: the address is taken, or none of this machine's.
        OverflowError: there is no such port.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
        )
    except UnicodeError as error:
        raise OSError(f"{host!r} is no host name: {error}") from error


def url_of(listening: socket.socket, rules: AccessRules) -> str:
    """Return the URL under which a listening socket is reached from this machine."""
    host, port = listening.getsockname()[:2]
    return f"{'https' if rules.is_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


@asynccontextmanager
async def serving(
    app: ASGIApp,
    listening: socket.socket,
    rules: AccessRules,
    *,
    name: str,
    shutdown_s: int,
    websockets: WebSockets = "none",
    max_connections: int = MAX_CONNECTIONS,
) -> AsyncIterator[None]:
    """Serve an application while the block runs; requests still open `shutdown_s` after its end are cut.

    `rules` say whether it speaks TLS; whom they let in is for `Door` to check. The socket is closed at the end.
    """
    server = HttpServer(
        app,
        listening,
        max_connections=max_connections,
        shutdown_s=shutdown_s,
        ws=websockets,
        **rules.for_uvicorn(),
    )
    with listening:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(), name=name)
            try:
                yield
            finally:
                server.should_exit = True
