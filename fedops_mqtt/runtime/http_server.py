"""uvicorn with limits: no client can exhaust the process that listens.

The number of connections (of all, and of one peer) leaves descriptors for everything else, a request's head has a limit
of bytes and of time, and a connection without a request under way gives way to a newcomer.
"""

import asyncio
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedops_mqtt.runtime.http_access import IS_ABSOLUTE, AccessRules, check_address
from fedops_mqtt.runtime.machine import split_address

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 * 1024
"""Request line and headers; our clients send under 1 KiB, a browser with its cookies a few."""
HEAD_S = 20.0
"""A request's head arrives within this; of a body that was answered before its end, something does."""
WRITE_STALL_S = 60.0
"""A peer that takes nothing of its answer for this long is cut off."""
KEEP_ALIVE_S = 75
"""An idle connection is kept so long: longer than clients keep theirs (httpx 5 s, aiohttp 15 s), since a request that
meets the end of its connection fails. It gives way to a newcomer at any time."""
_BATCH = 64
"""Connections accepted in one turn of the loop: a fleet comes fast, and requests are read in between."""
_RESERVED = 1024
"""Descriptors for everything but connections (files, bus, database, child processes): these, or a quarter if fewer."""
_FULL_S = 0.2
"""Nothing is accepted for this long where the process has no descriptor left."""
_LOG_EVERY_S = 60.0
_TLS_CLOSE_S = 5.0
_TICK_S = 0.05

# uvicorn warns of each malformed request; any client can send those, so they are not logged.
_requests_log = logging.getLogger(f"{__name__}.requests")
_requests_log.setLevel(logging.ERROR)


def connections_within(most: int) -> int:
    """Return how many connections an address may have, at most `most`, so that descriptors are left for the rest.

    The process's own limit is raised first, as far as it may be (setrlimit(2)).
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return most
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    if soft - min(_RESERVED, soft // 4) < most and soft != hard:
        wanted = most + _RESERVED if hard == resource.RLIM_INFINITY else min(most + _RESERVED, hard)
        with suppress(OSError, ValueError):  # macOS: the kernel's own limit is lower than what it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return min(most, soft - min(_RESERVED, soft // 4))


class HttpServer(uvicorn.Server):
    """uvicorn on a socket that listens already, with limited connections; `should_exit` ends it.

    `options` are further ones of `uvicorn.Config`.

    Raises:
        OSError: a certificate or key cannot be used.
    """

    def __init__(
        self, app: ASGIApp, listening: socket.socket, *, max_connections: int, shutdown_s: int, **options: Any
    ) -> None:
        async def served(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                if not self.should_exit:
                    raise  # else it was cut off below, and uvicorn would log it as an error of the application

        super().__init__(
            uvicorn.Config(
                served,
                http=HttpToolsProtocol,
                interface="asgi3",
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                loop="none",
                server_header=False,
                timeout_graceful_shutdown=shutdown_s,
                **options,
            )
        )
        self.config.load()
        self._listening = listening
        self._places = _Places(connections_within(max_connections))
        self._arriving: set[asyncio.Task[None]] = set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the caller."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin without uvicorn's own way to accept connections, which has no limit."""
        await super().startup(sockets=[])

    async def main_loop(self) -> None:
        """Accept connections until `should_exit`."""
        self._listening.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listening, self._accept)
        try:
            await super().main_loop()
        finally:
            loop.remove_reader(self._listening)
            for task in self._arriving:
                task.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, let what is asked be answered within the time of grace, and cut the rest."""
        self._listening.close()
        state, loop = self.server_state, asyncio.get_running_loop()
        for connection in list(state.connections):
            connection.shutdown()
        ends_at = loop.time() + (self.config.timeout_graceful_shutdown or 0)
        while (state.connections or state.tasks) and loop.time() < ends_at:  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(_TICK_S)
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.sleep(_TICK_S)  # what waits for its peer ends by itself now
        for task in list(state.tasks):
            task.cancel()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=1)

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                accepted, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._rest(error)
                return
            connection = _Accepted(accepted, _peer_of(address[0]), self._places)
            if self._places.take(connection):
                task = asyncio.get_running_loop().create_task(self._welcome(connection), name="http-connection")
                self._arriving.add(task)
                task.add_done_callback(self._arriving.discard)
            else:
                connection.close()

    def _rest(self, error: OSError) -> None:
        """Accept nothing for a moment: the process or the machine has no room left (EMFILE, ENFILE, ENOBUFS)."""
        self._places.log("no connection can be accepted", why=str(error))
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listening)
        self._places.give_way()
        loop.call_later(_FULL_S, self._go_on)

    def _go_on(self) -> None:
        if not self.should_exit and self._listening.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    async def _welcome(self, connection: "_Accepted") -> None:
        loop = asyncio.get_running_loop()
        is_tls = self.config.ssl is not None
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(
                partial(_HttpConnection, connection, self.config, self.server_state, self.lifespan.state),
                connection,
                ssl=self.config.ssl,
                ssl_handshake_timeout=HEAD_S if is_tls else None,
                ssl_shutdown_timeout=_TLS_CLOSE_S if is_tls else None,
            )
        except (OSError, asyncio.CancelledError):  # no TLS, or disconnected again; a listener that ends cancels
            connection.close()


def _peer_of(host: str) -> str:
    """Return who counts as one peer: an IPv4 address, or the /64 that a machine has of IPv6."""
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))


class _Accepted(socket.socket):
    """A connection's socket; it keeps its place until its descriptor is given back."""

    def __init__(self, accepted: socket.socket, peer: str, places: "_Places") -> None:
        self.peer = peer
        self.places = places
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self.setblocking(False)

    def close(self) -> None:
        self.places.leave(self)
        super().close()

    def detach(self) -> int:
        self.places.leave(self)  # uvloop takes the descriptor out before it closes it
        return super().detach()


class _Places:
    """The connections of one address; who has no request under way gives way, the longest first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_a_peer = max(1, most - most // 4)
        self._open: set[_Accepted] = set()
        self._idle: dict[_Accepted, None] = {}
        self._of_peer: Counter[str] = Counter()
        self._silent_until = 0.0

    def take(self, connection: _Accepted) -> bool:
        """Count a new connection; False: all are in use, and none is idle."""
        if self._of_peer[connection.peer] >= self._most_of_a_peer:
            self.log("a peer has as many connections as it may have", peer=connection.peer, most=self._most_of_a_peer)
            if not self.give_way(connection.peer):
                return False
        elif len(self._open) >= self._most:
            self.log("all connections are in use", most=self._most)
            if not self.give_way():
                return False
        self._open.add(connection)
        self._of_peer[connection.peer] += 1
        self._idle[connection] = None
        return True

    def give_way(self, peer: str | None = None) -> bool:
        """Close the connection that is idle longest, of this peer; False if there is none."""
        oldest = next((each for each in self._idle if peer in (None, each.peer)), None)
        if oldest is None:
            return False
        self.leave(oldest)
        try:
            oldest.shutdown(socket.SHUT_RDWR)  # the loop, or a TLS handshake, reads its end and closes it
        except OSError as error:
            logger.debug("connection was closed already", extra={"why": str(error)})
        return True

    def leave(self, connection: _Accepted) -> None:
        self._idle.pop(connection, None)
        if connection in self._open:
            self._open.remove(connection)
            self._of_peer[connection.peer] -= 1
            if not self._of_peer[connection.peer]:
                del self._of_peer[connection.peer]

    def set_busy(self, connection: _Accepted, is_busy: bool) -> None:
        if is_busy:
            self._idle.pop(connection, None)
        elif connection in self._open:
            self._idle[connection] = None

    def log(self, sentence: str, **facts: object) -> None:
        """Warn, at most once a minute: a client must not fill the log."""
        now = asyncio.get_running_loop().time()
        if now >= self._silent_until:
            self._silent_until = now + _LOG_EVERY_S
            logger.warning(sentence, extra=facts)


class _HttpConnection(HttpToolsProtocol):
    """uvicorn's connection, with limits of time and size for what uvicorn waits for without one."""

    def __init__(self, connection: _Accepted, config: uvicorn.Config, *state: Any) -> None:
        super().__init__(config, *state)
        self.logger = _requests_log
        self._connection = connection
        self._unused_bytes = 0
        self._head_limit: asyncio.TimerHandle | None = None
        self._write_limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self._limit_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unused_bytes += len(data)
        super().data_received(data)
        if self._unused_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._limit_head()

    def on_headers_complete(self) -> None:
        if self.pipeline or sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            raise ValueError("the head is too large, or more requests wait than one")  # uvicorn answers 400 and closes
        self._head_came()
        self.scope["state"][IS_ABSOLUTE] = not self.url.startswith(b"/")
        self._connection.places.set_busy(self._connection, True)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unused_bytes = 0
        if self._is_between_requests():  # an answer came before the end of its request, which may go on, but not stall
            self._head_came()
            self._limit_head()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unused_bytes = 0
        self._head_came()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_between_requests() and not self.pipeline:
            self._connection.places.set_busy(self._connection, False)
            if self.cycle.more_body:
                self._limit_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_limit = self.loop.call_later(WRITE_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_limit is not None:
            self._write_limit.cancel()
            self._write_limit = None

    def shutdown(self) -> None:
        super().shutdown()
        if not self._is_between_requests() and self.cycle.chunked_encoding:
            self.transport.close()  # a stream has no end of its own that would be worth waiting for

    def _limit_head(self) -> None:
        if self._head_limit is None:
            self._head_limit = self.loop.call_later(HEAD_S, self.transport.abort)

    def _head_came(self) -> None:
        if self._head_limit is not None:
            self._head_limit.cancel()
            self._head_limit = None

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse_head(self) -> None:
        if self._is_between_requests():
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()
        else:  # trailers without end, in the middle of an answer
            self.transport.abort()


BACKLOG = 4096
"""Connections that the kernel keeps until they are accepted; fewer, and a fleet that comes back at once is refused."""
MAX_CONNECTIONS = 4096
"""Of one address, unless its caller passes another number."""

WebSockets = Literal["none", "websockets-sansio"]


def listen(address: str, rules: AccessRules, *, what: str, setting: str, default_host: str) -> socket.socket:
    """Return a socket that listens at `host:port`; port 0 takes a free one. `what` and `setting` are for the error.

    Raises:
        AccessConfigError: the host is beyond this machine and access is not controlled, or the TLS files are invalid.
        OSError: the address is taken, or none of this machine's.
        ValueError, OverflowError: there is no such port.
    """
    host, port = split_address(address, default_host=default_host)
    check_address(host, address, rules, what=what, setting=setting)
    rules.check_files()
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

    `rules` give the TLS files; `AccessControlMiddleware` checks requests. The socket is closed at the end.
    """
    server = HttpServer(
        app,
        listening,
        max_connections=max_connections,
        shutdown_s=shutdown_s,
        ws=websockets,
        timeout_keep_alive=KEEP_ALIVE_S,
        **rules.for_uvicorn(),
    )
    with listening:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(), name=name)
            try:
                yield
            finally:
                server.should_exit = True
