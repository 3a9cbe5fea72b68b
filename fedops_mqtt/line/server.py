"""The FL server's end of the line: a context manager that serves in a thread of its own.

The strategy runs in the caller's thread on `grid`. `on_member` is called in the line's thread and must not block; it
passes the change on (to a queue, or to another loop by `call_soon_threadsafe`).
"""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import uvloop

from fedops_mqtt.line.access import Access
from fedops_mqtt.line.endpoints import LineApp, ServedApp
from fedops_mqtt.line.errors import LineConfigError
from fedops_mqtt.line.grid import LineGrid
from fedops_mqtt.line.members import LineMember, MemberChange
from fedops_mqtt.line.run_state import RunOver, RunState
from fedops_mqtt.line.wire import LineCompression, LineLimits
from fedops_mqtt.protocol import Outcome, ReasonCode, RunOutcome, name_error
from fedops_mqtt.runtime.http_server import HttpServer, open_socket
from fedops_mqtt.runtime.machine import check_host, join_address, split_address

_log = logging.getLogger(__name__)

_KEEP_ALIVE_S = 600
"""An idle connection of a training client is kept this long; it opens a new one by itself after that."""
_MAX_CONNECTIONS = 65_536
"""A client has three; `ulimit -n` may allow fewer."""
_SHUTDOWN_S = 2
"""Requests still open when the server ends are cut after this."""
_START_S = 10.0
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTls:
    """Certificate (with its chain) and private key, PEM files."""

    cert_file: Path
    key_file: Path


class LineServer:
    """One run's line. Listens from the moment it is built; serves inside its `with` block.

    `advertise` is `host` or `host:port` as clients reach it; default is the address it listens on. `min_clients` is how
    many have to be there before `grid.get_node_ids()` answers, `max_clients` how many ever come (None: unknown).
    `app` is the app bundle that clients may fetch, all from this one buffer.

    Raises:
        LineConfigError: the address is wrong, or nobody (or everybody on the network) could join.
        OSError: the address is taken.
    """

    def __init__(
        self,
        *,
        run_id: str,
        launch: int = 0,
        listen: str = "127.0.0.1:0",
        advertise: str | None = None,
        run_secret: bytes | None = None,
        join_token: str | None = None,
        join: Literal["invited", "open"] = "invited",
        limits: LineLimits | None = None,
        tls: LineTls | None = None,
        compression: LineCompression | None = None,
        min_clients: int = 1,
        max_clients: int | None = None,
        on_member: Callable[[MemberChange], None] = lambda change: None,
        on_round: Callable[[int], None] | None = None,
        app: bytes | None = None,
    ) -> None:
        limits = limits or LineLimits()
        try:
            host, port = split_address(listen)
        except ValueError as error:
            raise LineConfigError(str(error)) from error
        if not host or port > _MAX_PORT:
            raise LineConfigError(f"{listen!r} is not host:port")
        access = Access(join=join, run_id=run_id, run_secret=run_secret, join_token=join_token, host=host)
        self._run_state = RunState(on_member=on_member)
        self._app = LineApp(
            run_state=self._run_state,
            access=access,
            run_id=run_id,
            launch=launch,
            limits=limits,
            compression=compression,
            app=None if app is None else ServedApp(app),
        )
        self._socket = open_socket(host, port)
        self._server = self._make_server(tls)
        self.address = _advertised(host, self._socket.getsockname()[1], advertise)
        self.grid = LineGrid(
            run_state=self._run_state,
            run_id=run_id,
            limits=limits,
            min_clients=min_clients,
            max_clients=max_clients,
            compression=compression,
            on_round=on_round,
        )
        self._serving = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="line", daemon=True)
        self._is_closed = False

    @property
    def members(self) -> Mapping[str, LineMember]:
        """Everybody who ever joined, by MAC, as they are now."""
        return self._run_state.members

    @property
    def malformed_frames(self) -> int:
        """Requests answered with 400 so far."""
        return self._app.malformed_frames

    @property
    def bytes_in(self) -> int:
        """Frame bytes received from all clients."""
        return sum(member.bytes_in for member in self.members.values())

    @property
    def bytes_out(self) -> int:
        """Frame bytes sent to all clients."""
        return sum(member.bytes_out for member in self.members.values())

    def drop(self, mac: str, outcome: Outcome, reason: str, code: ReasonCode | None = None) -> None:
        """Take a client out because of what the bus reports (failed, stopped); its round goes on at once."""
        self._run_state.drop(mac, outcome, reason, code)

    def interrupt(self, outcome: RunOutcome, reason: str) -> None:
        """End the strategy from another thread: whatever it waits for on the Grid raises; then `close`."""
        self._run_state.interrupt(RunOver(outcome=outcome, reason=reason))

    def close(self, outcome: RunOutcome, reason: str, *, linger_s: float = 5.0) -> list[str]:
        """Answer *gone* to every client, wait until they have it or `linger_s` passes, and stop serving.

        Returns the MACs that could not be reached (they learn it from the bus). Closing again does nothing.
        """
        if self._is_closed:
            return []
        self._is_closed = True
        uninformed = self._run_state.close(RunOver(outcome=outcome, reason=reason), time.monotonic() + linger_s)
        self._stop_serving()
        return uninformed

    def abandon(self) -> None:
        """Stop serving without informing clients: another launch has this run now, and they go on looking for it."""
        if not self._is_closed:
            self._is_closed = True
            self._stop_serving()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._serving.wait(_START_S):
            raise LineConfigError("the line did not start to serve; its error is in the log")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close(RunOutcome.COMPLETED, "")
        else:
            self.close(RunOutcome.FAILED, name_error(error))

    def _stop_serving(self) -> None:
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def _make_server(self, tls: LineTls | None) -> HttpServer:
        try:
            return HttpServer(
                self._app,
                self._socket,
                max_connections=_MAX_CONNECTIONS,
                shutdown_s=_SHUTDOWN_S,
                ws="none",
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                ssl_certfile=tls.cert_file if tls else None,
                ssl_keyfile=tls.key_file if tls else None,
            )
        except OSError as error:
            self._socket.close()
            raise LineConfigError(f"certificate or key of the line: {error}") from error

    def _serve(self) -> None:
        # uvloop gathers what is written to a connection in a turn: head and frame are one write, the client wakes once.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve_here())

    async def _serve_here(self) -> None:
        self._run_state.bind(asyncio.get_running_loop())
        self._serving.set()
        await self._server.serve()


def _advertised(host: str, port: int, advertise: str | None) -> str:
    if advertise is None:
        return join_address(host, port)
    try:
        check_host(advertise)
    except ValueError as error:
        raise LineConfigError(f"advertise: {error}") from error
    return advertise if re.search(r":\d+$", advertise) else f"{advertise}:{port}"
