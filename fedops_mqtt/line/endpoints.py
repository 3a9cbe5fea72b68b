"""The line's HTTP endpoints as an ASGI application: app, join, next, reply, control, pong, leave.

Requests are judged before their body is read: token, session, size. Frames stream both ways and are never whole in
memory twice; a broken connection takes nothing from what arrived before it.
"""

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from flwr.app import Error, Message

from fedops_mqtt.line import flwr_private, wire
from fedops_mqtt.line.access import Access
from fedops_mqtt.line.asgi_request import Receive, Request, Scope, Send
from fedops_mqtt.line.codec import FrameReader
from fedops_mqtt.line.errors import FrameError, LineRefusedError, MessageTooLargeError
from fedops_mqtt.line.message_queue import OutboundMessage
from fedops_mqtt.line.reply_check import LIMIT_RULE, is_quick, refusal_of
from fedops_mqtt.line.rounds import kind_of
from fedops_mqtt.line.run_state import RunState, Session, Upload
from fedops_mqtt.line.wire import LineCompression, LineLimits
from fedops_mqtt.protocol import Outcome, Phase

_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")
_APP_CHUNK_BYTES = 64 * 1024
"""Small, so that a device on a slow link is seen to receive: what one chunk takes is limited by `stall_s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppPart:
    """What one request gets."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    first: int
    """Where in the bundle it begins."""
    num_bytes: int
    content: memoryview = field(repr=False)

    def chunks(self) -> Iterator[memoryview]:
        """Give the content in pieces; none is copied."""
        for at in range(0, self.num_bytes, _APP_CHUNK_BYTES):
            yield self.content[at : at + _APP_CHUNK_BYTES]


class ServedApp:
    """A bundle in memory; `digest` is its SHA-256."""

    def __init__(self, data: bytes) -> None:
        self.digest = hashlib.sha256(data).hexdigest()
        self._data = memoryview(data)

    def part(self, asked: str | None) -> AppPart:
        """Return what a `Range` header asks for; the whole where there is none, or one of another form.

        Raises:
            LineRefusedError: 416, the range begins behind the end.
        """
        whole = len(self._data)
        match = _RANGE.fullmatch(asked or "")
        if match is None:
            headers = ((b"accept-ranges", b"bytes"),)
            return AppPart(status=200, headers=headers, first=0, num_bytes=whole, content=self._data)
        first = int(match[1])
        last = min(int(match[2]), whole - 1) if match[2] else whole - 1
        if first >= whole or last < first:
            raise LineRefusedError(status=416, code="range", reason=f"the app has {whole} bytes, not {asked}")
        content = self._data[first : last + 1]
        headers = ((b"content-range", b"bytes %d-%d/%d" % (first, last, whole)),)
        return AppPart(status=206, headers=headers, first=first, num_bytes=len(content), content=content)


_log = logging.getLogger(__name__)

_MISSED_PINGS = 2
"""So many unanswered and a third period over: the host is lost. (Three periods in all, as the setting promises.)"""


class LineApp:
    """Serves one run; `malformed_frames` counts what was answered with 400."""

    def __init__(
        self,
        *,
        run_state: RunState,
        access: Access,
        run_id: str,
        launch: int,
        limits: LineLimits,
        compression: LineCompression | None,
        app: ServedApp | None = None,
    ) -> None:
        self._run_state = run_state
        self._access = access
        self._run_id = run_id
        self._launch = launch
        self._limits = limits
        self._compression = compression
        self._app = app
        self.malformed_frames = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3)."""
        request = Request(scope, receive, send, stall_s=self._limits.stall_s)
        try:
            await self._serve(request)
        except LineRefusedError as error:
            refusal = wire.Refusal(code=error.code, reason=error.reason, outcome=error.outcome)
            await request.answer(error.status, wire.encode_body(refusal))
        except MessageTooLargeError as error:
            await request.answer(413, wire.encode_body(wire.Refusal(code="too_large", reason=str(error))))
        except FrameError as error:
            self.malformed_frames += 1
            _log.warning("malformed request on the line", extra={"path": request.path, "problem": error.problem})
            await request.answer(400, wire.encode_body(wire.Refusal(code="malformed", reason=error.problem)))

    async def _serve(self, request: Request) -> None:
        match request.method, request.path:
            case "GET", wire.HELLO_PATH:
                await request.answer(200, b'{"line":1}')
            case "POST", wire.JOIN_PATH:
                await self._join(request)
            case "GET", wire.NEXT_PATH:
                await self._next(request, self._session(request))
            case "GET", wire.CONTROL_PATH:
                await self._control(request, self._session(request))
            case "POST", wire.PONG_PATH:
                self._session(request).unanswered_pings = 0
                await request.answer(200, b"{}")
            case "POST", wire.LEAVE_PATH:
                await self._leave(request, self._session(request))
            case "GET", path if path.startswith(wire.APP_PATH):
                await self._send_app(request, path.removeprefix(wire.APP_PATH))
            case _, path if path.startswith(wire.REPLY_PATH):
                await self._serve_reply(request, path.removeprefix(wire.REPLY_PATH))
            case _:
                raise LineRefusedError(status=404, code="no_such_path", reason=f"{request.method} {request.path}")

    async def _send_app(self, request: Request, digest: str) -> None:
        mac = request.header(wire.CLIENT_HEADER) or ""
        self._access.check(mac, request.token)
        if self._app is None or self._app.digest != digest:
            raise LineRefusedError(status=404, code="no_such_app", reason=f"this server has no app {digest[:64]}")
        part = self._app.part(request.header("range"))
        chunks = self._noted(mac, part)
        await request.answer_chunks(chunks, "application/zip", part.num_bytes, part.status, part.headers)

    def _noted(self, mac: str, part: AppPart) -> Iterator[memoryview]:
        """Give the chunks of a part, and note each: a client that still receives cannot have joined."""
        at = part.first
        for chunk in part.chunks():
            self._run_state.note_app_sent(mac, at)
            yield chunk
            at += len(chunk)
        self._run_state.note_app_sent(mac, at)

    async def _serve_reply(self, request: Request, message_id: str) -> None:
        session = self._session(request)
        match request.method:
            case "GET":
                await request.answer(200, wire.encode_body(self._reply_state(session, message_id)))
            case "POST":
                await self._take_reply(request, session, message_id)
            case _:
                raise LineRefusedError(status=405, code="no_such_method", reason=request.method)

    def _session(self, request: Request) -> Session:
        session = self._run_state.session(request.header(wire.SESSION_HEADER))
        self._access.check(session.mac, request.token)
        return session

    async def _join(self, request: Request) -> None:
        body = wire.decode_body(wire.JoinRequest, await request.small_body())
        self._access.check(body.client_mac, request.token)
        if body.run_id not in (None, self._run_id):
            raise LineRefusedError(status=409, code="other_run", reason=f"this server serves run {self._run_id}")
        session = self._run_state.admit(body)
        self._run_state.expect_control(session, (_MISSED_PINGS + 1) * self._limits.ping_s)
        answer = wire.JoinAnswer(
            run_id=self._run_id,
            launch=self._launch,
            session=session.id,
            node_id=session.node_id,
            ping_s=self._limits.ping_s,
            poll_s=self._limits.poll_s,
            round_s=self._limits.round_s,
            max_message_bytes=self._limits.max_message_bytes,
            compress_level=self._compression.level if self._compression else 0,
            compress_threshold_bytes=self._compression.threshold_bytes if self._compression else 0,
        )
        await request.answer(200, wire.encode_body(answer))

    async def _leave(self, request: Request, session: Session) -> None:
        body = wire.decode_body(wire.LeaveRequest, await request.small_body())
        self._run_state.leave(session, body.outcome, body.reason, body.reason_code)
        await request.answer(200, b"{}")

    async def _next(self, request: Request, session: Session) -> None:
        outbound_message = await self._wait_for_message(session)
        if outbound_message is None:
            await request.answer(204)
            return
        self._run_state.progress(session, Phase.DOWNLOADING, outbound_message.round)
        if await request.answer_frame(outbound_message.frame):
            self._run_state.count(session, bytes_out=outbound_message.frame.num_bytes)
            self._run_state.progress(session, _phase_of(outbound_message), outbound_message.round)

    async def _wait_for_message(self, session: Session) -> OutboundMessage | None:
        session.polls = poll = session.polls + 1
        session.has_messages.set()  # an older poll of this client, if any, ends now
        deadline = asyncio.get_running_loop().time() + self._limits.poll_s
        while session.polls == poll and not session.is_over:
            session.has_messages.clear()
            if (outbound_message := self._run_state.next_message(session)) is not None:
                return outbound_message
            try:
                async with asyncio.timeout_at(deadline):
                    await session.has_messages.wait()
            except TimeoutError:
                return None
        return None

    def _reply_state(self, session: Session, message_id: str) -> wire.ReplyState:
        if not self._run_state.expects(session, message_id):
            return wire.ReplyState(is_done=True, was_taken=self._run_state.was_answered(session, message_id))
        upload = self._run_state.upload(message_id)
        return wire.ReplyState(received_bytes=0 if upload is None else upload.reader.received_bytes)

    async def _take_reply(self, request: Request, session: Session, message_id: str) -> None:
        if self._run_state.expects(session, message_id):
            self._run_state.progress(session, Phase.UPLOADING)
            await self._receive_reply(request, session, message_id)
        state = self._reply_state(session, message_id)
        if state.is_done and request.header(wire.THEN_HEADER) == "next":
            await self._next(request, session)
        else:
            await request.answer(200, wire.encode_body(state))

    async def _receive_reply(self, request: Request, session: Session, message_id: str) -> None:
        outbound_message = self._run_state.outbound_message(message_id)
        check = outbound_message.check if outbound_message is not None else None
        try:
            upload = self._open_upload(request, message_id, outbound_message)
            if not await self._feed(request, session, upload):
                return
            reply = _reply_of(session, message_id, upload)
            if outbound_message is not None and check is not None:
                sent = outbound_message.message
                problem = (
                    check.problem(sent, reply)
                    if is_quick(sent, reply)
                    else await asyncio.to_thread(check.problem, sent, reply)
                )
                if problem is not None:
                    reply = self._refuse(session, sent, problem)
            self._run_state.answer(session, message_id, reply)
            self._run_state.forget_upload(message_id)
            self._run_state.progress(session, Phase.WAITING)
        except FrameError:
            self._run_state.forget_upload(message_id)
            raise
        except MessageTooLargeError as error:
            self._run_state.forget_upload(message_id)
            if error.limit_bytes < self._limits.max_message_bytes:
                error = MessageTooLargeError(error.size_bytes, error.limit_bytes, rule=LIMIT_RULE)
                self._run_state.refuse(session, str(error))
            raise error from None

    def _refuse(self, session: Session, sent: Message, problem: str) -> Message:
        """A reply does not fit: an update ends its client's part as failed, another reply fails as a message."""
        reason = refusal_of(sent, problem)
        if kind_of(sent) == "train":
            self._run_state.refuse(session, reason)
            raise LineRefusedError(status=410, code="ended", reason=reason, outcome=Outcome.FAILED)
        _log.warning("reply refused", extra={"client_mac": session.mac, "reason": reason})
        return Message(Error(flwr_private.CLIENT_APP_RAISED, f"{session.mac}: {reason}"), reply_to=sent)

    def _open_upload(self, request: Request, message_id: str, outbound_message: OutboundMessage | None) -> Upload:
        num_bytes, offset = request.number(wire.LENGTH_HEADER), request.number(wire.OFFSET_HEADER)
        upload = self._run_state.upload(message_id)
        if offset == 0:
            max_bytes = self._limits.max_message_bytes
            if outbound_message is not None and outbound_message.check is not None:
                max_bytes = outbound_message.check.limit_bytes(outbound_message.message, max_bytes)
            reader = FrameReader(num_bytes=num_bytes, max_bytes=max_bytes)
            if upload is not None:
                upload.turn += 1  # whoever still feeds it stops
            upload = Upload(reader=reader)
            self._run_state.start_upload(message_id, upload)
        if upload is None or (upload.reader.num_bytes, upload.reader.received_bytes) != (num_bytes, offset):
            raise LineRefusedError(status=409, code="offset", reason=f"nothing was received up to byte {offset}")
        upload.turn += 1
        return upload

    async def _feed(self, request: Request, session: Session, upload: Upload) -> bool:
        """Feed the body to the reader; False if the request ended first, or a newer one took over."""
        turn = upload.turn
        async for chunk in request.chunks():
            if upload.turn != turn:
                return False
            upload.reader.feed(chunk)
            session.unanswered_pings = 0  # bytes are a sign of life, and pings may wait behind them
            self._run_state.count(session, bytes_in=len(chunk))
        return upload.turn == turn and upload.reader.is_complete

    async def _control(self, request: Request, session: Session) -> None:
        await request.start_stream(wire.JSON_TYPE)
        self._run_state.attach(session)
        reason = "connection closed"
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch(request, session), name=f"watch {session.mac}")
                reason = await self._serve_control(request, session) or reason
                watch.cancel()
        finally:
            self._run_state.detach(session, reason)
        await request.end_stream()

    async def _watch(self, request: Request, session: Session) -> None:
        await request.wait_for_disconnect()
        session.has_disconnected = True
        session.control.set()

    async def _serve_control(self, request: Request, session: Session) -> str | None:
        """Send pings and orders until the session ends; returns why it did, if the client cannot know."""
        loop = asyncio.get_running_loop()
        number, next_ping = 0, loop.time()
        while not session.has_disconnected:
            session.control.clear()
            while session.orders:
                await self._send_order(request, session, session.orders.popleft())
            if session.is_over:
                return None
            if loop.time() >= next_ping:
                if session.unanswered_pings >= _MISSED_PINGS:
                    return f"no answer to {_MISSED_PINGS} pings, {self._limits.ping_s} s apart"
                number, next_ping = number + 1, loop.time() + self._limits.ping_s
                session.unanswered_pings += 1
                await request.send_chunk(wire.encode_body(wire.ControlLine(ping=number)) + b"\n")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_ping):
                    await session.control.wait()
        return None

    async def _send_order(self, request: Request, session: Session, order: wire.ControlLine) -> None:
        await request.send_chunk(wire.encode_body(order) + b"\n")
        if order.gone is not None:
            self._run_state.note_departed(session)


def _reply_of(session: Session, message_id: str, upload: Upload) -> Message:
    message = upload.reader.take()
    if message.metadata.reply_to_message_id != message_id or message.metadata.src_node_id != session.node_id:
        raise FrameError(f"is no reply of node {session.node_id} to message {message_id}")
    return message


def _phase_of(outbound_message: OutboundMessage) -> Phase:
    return Phase.TRAINING if kind_of(outbound_message.message) == "train" else Phase.EVALUATING
