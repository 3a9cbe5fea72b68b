"""A persistent HTTP/1.1 connection of the training process, on `http.client`: what it sends and reads is never copied.

Used by one thread at a time; only `abort` may come from another. Every error that means "the connection broke" is a
`BROKEN` one, everything that the server refused is a LineRefusedError.
"""

import http.client
import math
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedops_mqtt.line import wire
from fedops_mqtt.line.errors import FrameError, LineConfigError, LineRefusedError
from fedops_mqtt.line.wire import HELLO_PATH, Buffer
from fedops_mqtt.protocol.values import MAX_PORT, has_usable_labels
from fedops_mqtt.runtime.machine import split_address

BROKEN = (OSError, EOFError, http.client.HTTPException)
"""What a broken connection raises: try again. (A TLS failure is an OSError too: see `Connector`.)"""

_GATHER_BYTES = 64 * 1024
"""As much as a frame gathers of its small buffers (`Frame.chunks`)."""


class Connector:
    """Makes connections to one server; with a CA file the line is TLS and a plain one is refused.

    Raises:
        LineConfigError: the address or the CA file is wrong.
    """

    def __init__(self, server_ip: str, *, ca_file: Path | None, connect_s: float) -> None:
        try:
            self._host, self._port = split_address(server_ip)
        except ValueError as error:
            raise LineConfigError(f"server_ip {error}") from error
        if self._port > MAX_PORT or not has_usable_labels(self._host):
            raise LineConfigError(f"server_ip {server_ip[:300]!r} is not host:port")
        self.server_ip = server_ip
        self._connect_s = connect_s
        self._tls = None if ca_file is None else _tls_context(ca_file)

    def connection(self, *, within_s: float = math.inf) -> "LineConnection":
        """Return a new connection; it connects with its first request, within its own limit and this one."""
        limit_s = min(self._connect_s, within_s)
        if self._tls is None:
            return LineConnection(_Gathering(self._host, self._port, timeout=limit_s))
        return LineConnection(_GatheringTls(self._host, self._port, timeout=limit_s, context=self._tls))


class _Gathering(http.client.HTTPConnection):
    """Sends a request's head and what is small of its body in one write: the server is woken once, with all of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gathered = bytearray()

    def send(self, data: Any) -> None:
        """Take bytes to be sent; `flush` has to follow the last of them."""
        if len(self._gathered) + len(data) > _GATHER_BYTES:
            self.flush()
        if len(data) > _GATHER_BYTES:
            super().send(data)
        else:
            self._gathered += data

    def flush(self) -> None:
        """Send what was gathered."""
        if self._gathered:
            data, self._gathered = self._gathered, bytearray()
            super().send(data)

    def close(self) -> None:
        """Close the connection, with nothing left for the next one."""
        self._gathered.clear()
        super().close()


class _GatheringTls(_Gathering, http.client.HTTPSConnection):
    """The same over TLS."""


class LineConnection:
    """One connection; it connects again by itself when the server has closed it between two requests."""

    def __init__(self, connection: _Gathering) -> None:
        self._http = connection
        self._sock: socket.socket | None = None
        """`http.client` lets go of its own when an answer is to end with the connection, before it is read."""
        self._is_aborted = False

    def ask(self, method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"", timeout_s: float) -> bytes:
        """Send a small request and return the whole answer.

        Raises:
            LineRefusedError: the status is not a success.
            BROKEN: no answer came.
        """
        response = self.open(method, path, headers=headers, body=body, timeout_s=timeout_s)
        try:
            return small_body(response)
        except BROKEN:
            self._http.close()
            raise

    def open(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"", timeout_s: float
    ) -> http.client.HTTPResponse:
        """Send a small request and return the answer, to be read to its end by the caller; raises as `ask`."""
        is_reused = self._http.sock is not None
        try:
            return self._exchange(method, path, headers, [body] if body else [], len(body), timeout_s)
        except (ConnectionError, http.client.BadStatusLine):
            if not is_reused or self._is_aborted:
                raise
            self._http.close()  # the server closed it while it was idle: that is no outage
            return self._exchange(method, path, headers, [body] if body else [], len(body), timeout_s)

    def upload(
        self, path: str, *, headers: Mapping[str, str], body: Iterable[Buffer], num_bytes: int, stall_s: float
    ) -> None:
        """Post a stream of buffers, each within `stall_s`; `answer` gets the answer. Raises BROKEN; never repeats."""
        try:
            self._send("POST", path, headers, body, num_bytes, stall_s)
        except BROKEN:
            self._http.close()
            raise

    def answer(self, *, timeout_s: float) -> http.client.HTTPResponse:
        """Wait for the answer to an upload, to be read to its end by the caller; raises as `ask`."""
        try:
            self._http.sock.settimeout(timeout_s)
            return _checked(self._http.getresponse())
        except BROKEN:
            self._http.close()
            raise

    def abort(self) -> None:
        """Break the connection from another thread: whoever waits on it gets a BROKEN error at once."""
        self._is_aborted = True
        sock = self._sock
        if sock is not None:
            with suppress(OSError):
                # The plain socket's: SSLSocket.shutdown would take the TLS state away under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    @contextmanager
    def aborted_after(self, limit_s: float) -> Iterator[threading.Timer]:
        """Abort what the block does once it has taken so long; to cancel the timer lets the block go on without limit.

        Every other limit is one of silence: who sends a byte now and then stays below them for ever.
        """
        timer = threading.Timer(min(limit_s, threading.TIMEOUT_MAX), self.abort)
        timer.daemon = True
        timer.start()
        try:
            yield timer
        finally:
            timer.cancel()

    def close(self) -> None:
        """Close it; the owner's, from its own thread."""
        self._http.close()

    def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[Buffer],
        num_bytes: int,
        timeout_s: float,
    ) -> http.client.HTTPResponse:
        try:
            self._send(method, path, headers, body, num_bytes, timeout_s)
            return _checked(self._http.getresponse())
        except BROKEN:
            self._http.close()
            raise

    def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[Buffer],
        num_bytes: int,
        timeout_s: float,
    ) -> None:
        if self._http.sock is None:
            self._http.connect()
        self._sock = self._http.sock
        if self._is_aborted:
            raise ConnectionAbortedError("connection was aborted")
        self._http.sock.settimeout(timeout_s)
        self._http.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            self._http.putheader(name, value)
        if method == "POST":
            self._http.putheader("content-length", str(num_bytes))
        self._http.endheaders()
        for buffer in body:
            self._http.send(buffer)
        self._http.flush()


def small_body(response: http.client.HTTPResponse) -> bytes:
    """Return the whole body of an answer that is no frame.

    Raises:
        HTTPException: it is longer than the line's bodies are, or cut off; the connection is of no use any more.
    """
    body = response.read(wire.MAX_BODY_BYTES + 1)
    if response.length and len(body) <= wire.MAX_BODY_BYTES:  # `read` with a length raises nothing at an early end
        raise http.client.IncompleteRead(body, response.length)
    if len(body) > wire.MAX_BODY_BYTES:
        raise http.client.HTTPException(f"answer {response.status} has over {wire.MAX_BODY_BYTES} bytes")
    return body


def _checked(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if response.status in (200, 204, 206):
        return response
    body = small_body(response)
    try:
        refusal = wire.decode_body(wire.Refusal, body)
    except FrameError as error:  # not ours: a proxy's page, or another server altogether
        raise http.client.HTTPException(f"status {response.status} {response.reason} from something else") from error
    raise LineRefusedError(
        status=response.status, code=refusal.code, reason=refusal.reason, outcome=refusal.outcome
    ) from None


def _tls_context(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise LineConfigError(f"line CA file {ca_file}: {error}") from error


_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""RFC 9113, 3.4: what an HTTP/2 client sends first, with an empty SETTINGS frame."""
_HTTP2_SETTINGS = 4
"""RFC 9113, 6.5: the type of the frame that a server sends first."""
_FRAME_HEAD_BYTES = 9


class Answers(StrEnum):
    """Who answers at an address."""

    LINE = "line"
    GRPC = "grpc"
    NOBODY = "nobody"


def probe(server_ip: str, *, ca_file: Path | None = None, timeout_s: float = 5.0) -> Answers:
    """Return what answers at `server_ip` now; takes at most about twice `timeout_s`.

    Raises:
        LineConfigError: the address or the CA file is wrong.
    """
    connection = Connector(server_ip, ca_file=ca_file, connect_s=timeout_s).connection()
    try:
        connection.ask("GET", HELLO_PATH, headers={}, timeout_s=timeout_s)
    except (*BROKEN, LineRefusedError):
        return Answers.GRPC if _answers_http2(server_ip, timeout_s) else Answers.NOBODY
    finally:
        connection.close()
    return Answers.LINE


def _answers_http2(server_ip: str, timeout_s: float) -> bool:
    try:
        with socket.create_connection(split_address(server_ip), timeout=timeout_s) as sock:
            sock.sendall(_HTTP2_PREFACE)
            head = sock.recv(_FRAME_HEAD_BYTES, socket.MSG_WAITALL)
    except (OSError, ssl.SSLError):
        return False
    return len(head) > 3 and head[3] == _HTTP2_SETTINGS
