"""An HTTP address of ours while it is served: the client's shim, the manager's API and the bridge listen alike.

uvicorn serves in the caller's event loop and leaves signals alone: when a process ends is its own to say.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

from fedops_mqtt.door import DoorRules, check_address

BACKLOG = 100
"""Connections that wait to be taken; a page opens six at once, a FedOps fleet polls one device at a time."""

WebSockets = Literal["none", "websockets-sansio"]


def split_address(address: str, *, default_host: str) -> tuple[str, int]:
    """Return host and port of `host:port`, `[::1]:port` or `:port`.

    Raises:
        ValueError: the port is no number.
    """
    host, _, port = address.rpartition(":")
    return host.strip("[]") or default_host, int(port)


def listen(address: str, rules: DoorRules, *, what: str, setting: str, default_host: str) -> socket.socket:
    """Return a socket that listens at `host:port`; port 0 takes a free one. `what` and `setting` are for the error.

    Raises:
        ExposedError: the host is beyond this machine and anybody would be let in.
        OSError: the address is taken, or none of this machine's.
        ValueError, OverflowError: there is no such port.
    """
    host, port = split_address(address, default_host=default_host)
    check_address(host, address, rules, what=what, setting=setting)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def url_of(listening: socket.socket, rules: DoorRules) -> str:
    """Return the URL under which a listening socket is reached from this machine."""
    host, port = listening.getsockname()[:2]
    return f"{'https' if rules.is_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


@asynccontextmanager
async def serving(
    app: ASGIApp,
    listening: socket.socket,
    rules: DoorRules,
    *,
    name: str,
    shutdown_s: int,
    websockets: WebSockets = "none",
) -> AsyncIterator[None]:
    """Serve an application while the block runs; requests still open `shutdown_s` after its end are cut.

    `rules` say whether it speaks TLS; whom they let in is for `Door` to check. The socket is closed at the end.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        loop="none",
        ws=websockets,
        server_header=False,
        timeout_graceful_shutdown=shutdown_s,
        **rules.for_uvicorn(),
    )
    server = _Server(config)
    with listening:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listening]), name=name)
            try:
                yield
            finally:
                server.should_exit = True


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever serves."""
        yield
