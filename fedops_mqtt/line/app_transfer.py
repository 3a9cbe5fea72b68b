"""Fetching an app bundle from an FL server into a file: a broken transfer goes on at its end. Imports no flwr.

The server's numbers are claims: at most the bytes that the start trigger named are taken.
"""

import errno
import os
import ssl
import threading
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from fedops_mqtt.line import wire
from fedops_mqtt.line.connection import BROKEN, Connector, LineConnection
from fedops_mqtt.line.errors import LineConfigError, LineRefusedError
from fedops_mqtt.runtime.bearer import bearer_header

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CHUNK_BYTES = 256 * 1024
_CONNECT_S = 10.0
_RETRY_S = 0.5
"""First wait before a broken transfer goes on; doubled each time up to `_MAX_RETRY_S`."""
_MAX_RETRY_S = 10.0


class TransferError(Exception):
    """The bundle did not arrive; what did is kept for the next try."""


class AppTransfer:
    """One bundle on its way; `run` blocks, `redirect` and `stop` may come from other threads.

    Args:
        into: the file that is appended to; made for its owner only.
        size: bytes of the bundle, from the trigger.
        stall_s: nothing received for so long counts as a broken connection.
        limit_s: the whole transfer, with all its tries.
        on_progress: called in the thread of `run`, with the bytes that are there.
    """

    def __init__(
        self,
        *,
        server_ip: str,
        digest: str,
        size: int,
        client_mac: str,
        token: str | None,
        ca_file: Path | None,
        into: Path,
        stall_s: float,
        limit_s: float,
        on_progress: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        self._server_ip = server_ip
        self._digest = digest
        self._size = size
        self._headers = {wire.CLIENT_HEADER: client_mac} | bearer_header(token)
        self._ca_file = ca_file
        self._into = into
        self._stall_s = stall_s
        self._limit_s = limit_s
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._connection: LineConnection | None = None
        self._is_stopped = threading.Event()
        self.num_received = 0
        """Bytes received by this transfer; what an earlier one left is not counted."""

    def run(self) -> None:
        """Fetch what is missing.

        Raises:
            TransferError: it was stopped, took too long, the server refuses, or the disk is full.
        """
        deadline, wait_s = time.monotonic() + self._limit_s, _RETRY_S
        problem = "no connection"
        while not self._is_stopped.is_set() and (left_s := deadline - time.monotonic()) > 0:
            had = self.num_received
            try:
                if self._fetch(deadline, left_s):
                    return
                problem = "the time is over"
            except LineRefusedError as error:
                if error.status != 416:
                    raise TransferError(f"the FL server {self._server_ip} refuses: {error.reason}") from error
                self._write(b"", "wb")  # what is there is longer than the server's: begin anew
                problem = error.reason
            except LineConfigError as error:
                raise TransferError(str(error)) from error
            except ssl.SSLCertVerificationError as error:  # waiting does not mend it
                raise TransferError(
                    f"the FL server {self._server_ip} is not trusted: {error.verify_message}"
                ) from error
            except BROKEN as error:
                problem = f"{type(error).__name__}: {error}"
            wait_s = _RETRY_S if self.num_received > had else min(2 * wait_s, _MAX_RETRY_S)
            self._is_stopped.wait(min(wait_s, max(0.0, deadline - time.monotonic())))
        if self._is_stopped.is_set():
            raise TransferError("the transfer was stopped")
        raise TransferError(
            f"{self._present():,} of {self._size:,} bytes came within {self._limit_s:g} s from the FL server"
            f" {self._server_ip}; last problem: {problem}"
        )

    def redirect(self, server_ip: str) -> None:
        """Go on at another address."""
        with self._lock:
            self._server_ip = server_ip
            if self._connection is not None:
                self._connection.abort()

    def stop(self) -> None:
        """End `run` soon."""
        self._is_stopped.set()
        with self._lock:
            if self._connection is not None:
                self._connection.abort()

    def _fetch(self, deadline: float, left_s: float) -> bool:
        """Append what the server sends; return whether all is there."""
        present, timeout_s = self._present(), min(left_s, self._stall_s)
        if present >= self._size:
            return True
        with self._lock:
            connector = Connector(self._server_ip, ca_file=self._ca_file, connect_s=_CONNECT_S)
            self._connection = connection = connector.connection(within_s=timeout_s)
        try:
            headers = self._headers | ({"range": f"bytes={present}-"} if present else {})
            path = f"{wire.APP_PATH}{self._digest}"
            with (
                connection.aborted_after(left_s),
                connection.open("GET", path, headers=headers, timeout_s=timeout_s) as response,
            ):
                return self._receive(response, present, deadline)
        finally:
            with self._lock:
                self._connection = None
            connection.close()

    def _receive(self, response: HTTPResponse, present: int, deadline: float) -> bool:
        if response.status == 206:
            if not (response.headers.get("content-range") or "").startswith(f"bytes {present}-"):
                raise HTTPException("the server sends another range than it was asked for")
        elif present:
            self._write(b"", "wb")
            present = 0
        while present < self._size:
            if self._is_stopped.is_set() or time.monotonic() >= deadline:
                return False
            chunk = response.read1(min(_CHUNK_BYTES, self._size - present))
            if not chunk:
                raise EOFError(f"the connection ended after {present} bytes")
            self._write(chunk, "ab")
            present += len(chunk)
            self.num_received += len(chunk)
            self._on_progress(present)
        return True

    def _present(self) -> int:
        try:
            return self._into.stat().st_size
        except FileNotFoundError:
            return 0

    def _write(self, chunk: bytes, mode: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_APPEND if mode == "ab" else os.O_TRUNC)
        try:
            with os.fdopen(os.open(self._into, flags, 0o600), mode) as file:
                file.write(chunk)
        except OSError as error:
            if error.errno in _NO_SPACE:  # what came so far would leave the daemon no room for its own files
                self._into.unlink(missing_ok=True)
                problem = (
                    f"no space for the app's {self._size:,} bytes ({error.strerror}); free some: {self._into.parent}"
                )
                raise TransferError(problem) from error
            raise TransferError(f"{self._into} cannot be written: {error.strerror or error}") from error
