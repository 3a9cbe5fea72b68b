"""One HTTP request to the line and its answer, over ASGI: headers, a small body or a stream, and what is sent back."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from fedops_mqtt.line import wire
from fedops_mqtt.line.codec import Frame
from fedops_mqtt.line.errors import FrameError, MessageTooLargeError
from fedops_mqtt.runtime.bearer import bearer_token

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Request:
    """One request and its answer, over ASGI."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, stall_s: float) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._stall_s = stall_s

    @property
    def token(self) -> str | None:
        """The bearer token, if there is one."""
        return bearer_token(self._headers)

    def header(self, name: str) -> str | None:
        """Return a header's value; `name` is in lower case."""
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    def number(self, name: str) -> int:
        """Return a header's value as a number of bytes.

        Raises:
            FrameError: it is missing, or no such number.
        """
        value = self.header(name) or ""
        if not (value.isascii() and value.isdigit()) or len(value) > 18:
            raise FrameError(f"header {name} is {value!r}, not a number of bytes")
        return int(value)

    async def chunks(self) -> Any:
        """Yield the body as it comes; ends early when the connection breaks or stalls."""
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(self._stall_s):
                    event = await self._receive()
                if event["type"] == "http.disconnect":
                    return
                if event["body"]:
                    yield event["body"]
                if not event["more_body"]:
                    return

    async def small_body(self) -> bytes:
        """Return the whole body.

        Raises:
            FrameError: it did not come whole, or not in time.
        """
        body, is_more = b"", True
        try:
            async with asyncio.timeout(self._stall_s):
                while is_more:
                    event = await self._receive()
                    if event["type"] == "http.disconnect":
                        raise FrameError("the body was cut off")
                    body, is_more = body + event["body"], event["more_body"]
                    if len(body) > wire.MAX_BODY_BYTES:
                        raise MessageTooLargeError(len(body), wire.MAX_BODY_BYTES)
        except TimeoutError:
            raise FrameError(f"the body took over {self._stall_s:g} s") from None
        return body

    async def wait_for_disconnect(self) -> None:
        """Return when the client has closed its connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(self, status: int, body: bytes = b"") -> None:
        """Send a whole answer; the body is JSON."""
        await self._start(status, wire.JSON_TYPE, len(body) if status != 204 else None)
        await self._send({"type": "http.response.body", "body": body})

    async def answer_frame(self, frame: Frame) -> bool:
        """Stream a frame; False if the client took nothing for too long (the connection is then cut)."""
        return await self.answer_chunks(frame.chunks(max_bytes=wire.CHUNK_BYTES), wire.FRAME_TYPE, frame.num_bytes)

    async def answer_chunks(
        self,
        chunks: Iterable[wire.Buffer],
        content_type: str,
        num_bytes: int,
        status: int = 200,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> bool:
        """Stream an answer of so many bytes; False if the client took nothing for too long."""
        await self._start(status, content_type, num_bytes, headers)
        left_bytes = num_bytes
        try:
            for chunk in chunks:
                left_bytes -= len(chunk)
                async with asyncio.timeout(self._stall_s):
                    await self._send({"type": "http.response.body", "body": chunk, "more_body": left_bytes > 0})
        except TimeoutError:
            return False
        return True

    async def start_stream(self, content_type: str) -> None:
        """Begin an answer of unknown length: `send_chunk` goes on with it, `end_stream` ends it."""
        await self._start(200, content_type, None)

    async def send_chunk(self, data: bytes) -> None:
        """Send a piece of a stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self) -> None:
        """Send the end of a stream."""
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(
        self, status: int, content_type: str, num_bytes: int | None, more: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        headers = [(b"content-type", content_type.encode()), *more]
        if num_bytes is not None:
            headers.append((b"content-length", b"%d" % num_bytes))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
