"""Runs a Flower ClientApp in the training process, fed by the line; the app's code runs in the caller's thread.

The app sees what Flower's SuperNode would give it: a Message and one Context whose state lives as long as the run. The
line may break and the server may move meanwhile; the current work goes on.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import NoReturn

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp

from fedops_mqtt.line import flwr_private, wire
from fedops_mqtt.line.client_session import (
    ClientSession,
    EndedError,
    JoinedSession,
    RunEnd,
    end_of_refusal,
)
from fedops_mqtt.line.codec import Frame, compress_with, encode_content, encode_message, read_message
from fedops_mqtt.line.connection import BROKEN, Connector, LineConnection, small_body
from fedops_mqtt.line.errors import FrameError, LineError, LineRefusedError, MessageTooLargeError
from fedops_mqtt.line.identity import flower_run_id_of
from fedops_mqtt.line.records import CycleCollector
from fedops_mqtt.line.rounds import kind_of, metrics_of, round_of
from fedops_mqtt.line.wire import LineCompression
from fedops_mqtt.protocol import Outcome, Phase, ReasonCode, describe_error, name_error
from fedops_mqtt.runtime.backoff import Backoff

_log = logging.getLogger(__name__)

_CONNECT_S = 5.0
_STALL_S = 60.0
"""A transfer that moves nothing for this long counts as broken (`LineLimits.stall_s` on the server)."""
_POLL_MARGIN_S = 10.0
_RETRY_FIRST_S = 0.1
_RETRY_MAX_S = 2.0
_GOODBYE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The server's answer to the join."""

    run_id: str
    flower_run_id: int
    node_id: int
    launch: int
    server_ip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the training process is; bytes are those of frames since the start."""

    phase: Phase
    round: int | None
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageAnswered:
    """One message that the app has answered: its kind (`train`, `evaluate`, ...), how long it took, its metrics."""

    kind: str
    round: int | None
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outgoing:
    message_id: str
    frame: Frame
    end: RunEnd | None
    """Set when this reply is the last: the app raised."""


def make_context(
    joined: Joined, *, node_config: UserConfig | None = None, run_config: UserConfig | None = None
) -> Context:
    """Return a fresh Context for an app: an empty state, and the node's and the run's configuration."""
    return Context(
        run_id=joined.flower_run_id,
        node_id=joined.node_id,
        node_config=node_config or {},
        state=RecordDict(),
        run_config=run_config or {},
    )


class LineRunner:
    """One client's part in one run. `redirect` and `stop` may come from any thread; the rest is the caller's thread.

    `on_progress` and `on_answered` are called in the caller's thread; `on_end` as soon as it is known that this
    client's part has ended, in any thread, perhaps while the app still computes: only ending the process ends that at
    once.

    Raises:
        LineConfigError: server address or CA file are wrong.
    """

    def __init__(
        self,
        *,
        server_ip: str,
        client_mac: str,
        instance: str,
        attempt: int,
        token: str | None = None,
        run_id: str | None = None,
        launch: int = 0,
        ca_file: Path | None = None,
        join_s: float = 60.0,
        rejoin_s: float = 120.0,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_answered: Callable[[MessageAnswered], None] = lambda answered: None,
        on_end: Callable[[RunEnd], None] = lambda end: None,
    ) -> None:
        self._ca_file = ca_file
        self._on_progress = on_progress
        self._on_answered = on_answered
        self._bytes_in = 0
        self._bytes_out = 0
        self._garbage = CycleCollector()
        self._backoff = Backoff(initial_s=_RETRY_FIRST_S, max_s=_RETRY_MAX_S)
        self._phase: tuple[Phase, int | None] | None = None
        self._data: LineConnection | None = None
        self._data_session: JoinedSession | None = None
        self._client_session = ClientSession(
            request=wire.JoinRequest(run_id=run_id, client_mac=client_mac, instance=instance, attempt=attempt),
            token=token,
            connector=self._connector(server_ip),
            launch=launch,
            make_connector=self._connector,
            join_s=join_s,
            rejoin_s=rejoin_s,
            on_end=on_end,
            on_broken=self._abort_transfer,
        )

    def run(self, app: ClientApp, context_factory: Callable[[Joined], Context] = make_context) -> RunEnd:
        """Join, do what the server asks for until the run has ended, and return how it ended."""
        self._enter(Phase.JOINING, None)
        self._client_session.start()
        try:
            self._work(app, context_factory)
        except EndedError as ended:
            return ended.end
        except BaseException as error:  # a fault of this package, or of the machine; reported before it goes on
            self._client_session.end(RunEnd(outcome=Outcome.FAILED, reason=describe_error(error)))
            raise
        finally:
            self._client_session.stop("training process ended")  # nothing happens if it ended before
            self._client_session.close(wait_s=_GOODBYE_S)
            self._drop_data()

    def redirect(self, server_ip: str, launch: int) -> None:
        """The run's server was launched again at `server_ip`; a lower launch than the one known is ignored."""
        self._client_session.redirect(server_ip, launch)

    def stop(self, reason: str, code: ReasonCode | None = None) -> None:
        """End at the next possible moment and inform the server at once; app code that runs is not interrupted."""
        self._client_session.stop(reason, code)

    def fail(self, reason: str, code: ReasonCode | None = None) -> None:
        """End as failed, at once; for whoever runs in place of an app that is somewhere else."""
        self._client_session.end(RunEnd(outcome=Outcome.FAILED, reason=reason, reason_code=code))

    def _connector(self, server_ip: str) -> Connector:
        return Connector(server_ip, ca_file=self._ca_file, connect_s=_CONNECT_S)

    def _work(self, app: ClientApp, context_factory: Callable[[Joined], Context]) -> NoReturn:
        """Fetch, compute, answer; ends by EndedError only."""
        context = context_factory(self._identify(self._client_session.wait()))
        outgoing: _Outgoing | None = None
        while True:
            session = self._client_session.wait()
            try:
                message = self._fetch(session) if outgoing is None else self._deliver(session, outgoing)
                if outgoing is not None and outgoing.end is not None:
                    self._client_session.end(outgoing.end)
                    raise EndedError(outgoing.end)
                outgoing = None
                self._backoff.reset()
            except LineRefusedError as refusal:
                end = end_of_refusal(refusal, has_joined=True)
                if end is not None:
                    is_known = refusal.code in ("gone", "ended", "evicted")
                    self._client_session.end(end, is_known=is_known)
                elif refusal.code == "no_session":
                    self._client_session.invalidate(session)
                else:
                    self._drop_data()  # the next try asks first what the server has
                continue
            except BROKEN as error:
                _log.debug("transfer broken", extra={"problem": str(error)})
                self._drop_data()
                self._client_session.pause(self._backoff.next_wait_s())
                continue
            except LineError as error:  # too large, or no frame: the next try would be the same
                self._client_session.end(RunEnd(outcome=Outcome.FAILED, reason=str(error)))
                continue
            if message is not None:
                outgoing = self._answer(app, context, message, session)
                del message  # the global model is not kept while the reply is sent

    def _identify(self, session: JoinedSession) -> Joined:
        run_id = flower_run_id_of(session.answer.run_id)
        flwr_private.set_identity(run_id=run_id, node_id=session.answer.node_id)
        return Joined(
            run_id=session.answer.run_id,
            flower_run_id=run_id,
            node_id=session.answer.node_id,
            launch=session.answer.launch,
            server_ip=session.connector.server_ip,
        )

    def _fetch(self, session: JoinedSession) -> Message | None:
        """Ask for the next message; None when there was none within the poll."""
        self._enter(Phase.WAITING, None)
        response = self._connection(session).open(
            "GET", wire.NEXT_PATH, headers=session.headers, timeout_s=_poll_timeout_s(session)
        )
        return self._read(response, session)

    def _read(self, response: HTTPResponse, session: JoinedSession) -> Message | None:
        """Read the answer to `next`."""
        if response.status == 204:
            response.read()
            return None
        num_bytes = response.length
        if num_bytes is None or response.headers.get_content_type() != wire.FRAME_TYPE:
            raise FrameError("the answer to next is no frame")
        self._enter(Phase.DOWNLOADING, None)
        message = read_message(response.read, num_bytes=num_bytes, max_bytes=session.answer.max_message_bytes)
        response.read()  # the end of the body: the connection is free for the next request
        self._bytes_in += num_bytes
        return message

    def _answer(self, app: ClientApp, context: Context, message: Message, session: JoinedSession) -> _Outgoing:
        kind, round_ = kind_of(message), round_of(message)
        self._enter(Phase.TRAINING if kind == "train" else Phase.EVALUATING, round_)
        started = time.monotonic()
        reply, end = _call(app, message, context)
        seconds = time.monotonic() - started
        if end is None and reply.has_content():  # a mod may answer with an Error of its own: the strategy's business
            self._on_answered(
                MessageAnswered(kind=kind, round=round_, seconds=seconds, metrics=metrics_of(reply.content))
            )
        return self._frame(message, reply, end, session)

    def _frame(self, message: Message, reply: Message, end: RunEnd | None, session: JoinedSession) -> _Outgoing:
        message_id = message.metadata.message_id
        flwr_private.stamp(
            reply, message_id="", run_id=message.metadata.run_id, src_node_id=message.metadata.dst_node_id
        )
        frame, problem = _encode(reply, session)
        if problem is not None:
            end = RunEnd(outcome=Outcome.FAILED, reason=problem) if kind_of(message) == MessageType.TRAIN else None
            frame = encode_message(Message(Error(flwr_private.CLIENT_APP_RAISED, problem), reply_to=message))
        return _Outgoing(message_id=message_id, frame=frame, end=end)

    def _deliver(self, session: JoinedSession, outgoing: _Outgoing) -> Message | None:
        """Send a reply, after a break only what the server does not have yet; returns the next message, if it came."""
        self._enter(Phase.UPLOADING, None)
        path = f"{wire.REPLY_PATH}{outgoing.message_id}"
        offset = 0
        if self._data is None:
            answer = self._connection(session).ask("GET", path, headers=session.headers, timeout_s=_STALL_S)
            state = wire.decode_body(wire.ReplyState, answer)
            if state.is_done:
                return None
            offset = state.received_bytes
        connection = self._connection(session)
        self._upload(connection, session, path, outgoing, offset)
        self._enter(Phase.WAITING, None)
        self._garbage.look(self._bytes_in + self._bytes_out)
        response = connection.answer(timeout_s=_poll_timeout_s(session))
        if response.status == 204 or response.headers.get_content_type() != wire.JSON_TYPE:
            return self._read(response, session)
        if not wire.decode_body(wire.ReplyState, small_body(response)).is_done:
            raise ConnectionResetError("the server did not get all of the reply")
        return None

    def _upload(
        self, connection: LineConnection, session: JoinedSession, path: str, outgoing: _Outgoing, offset: int
    ) -> None:
        frame = outgoing.frame
        headers = {**session.headers, wire.LENGTH_HEADER: str(frame.num_bytes), wire.OFFSET_HEADER: str(offset)}
        if outgoing.end is None:
            headers[wire.THEN_HEADER] = "next"
        connection.upload(
            path,
            headers=headers,
            body=frame.chunks(offset=offset, max_bytes=wire.CHUNK_BYTES),
            num_bytes=frame.num_bytes - offset,
            stall_s=_STALL_S,
        )
        self._bytes_out += frame.num_bytes - offset

    def _connection(self, session: JoinedSession) -> LineConnection:
        if self._data is None or self._data_session is not session:
            self._drop_data()
            self._data, self._data_session = session.connector.connection(), session
            if not self._client_session.is_current(
                session
            ):  # it ended while the connection was taken: nothing would abort that
                raise ConnectionAbortedError("the session has ended")
        return self._data

    def _drop_data(self) -> None:
        if self._data is not None:
            self._data.close()
            self._data = None

    def _abort_transfer(self) -> None:
        """The session has ended: a thread that waits on its connection need not wait any longer."""
        data = self._data
        if data is not None:
            data.abort()

    def _enter(self, phase: Phase, round_: int | None) -> None:
        before = self._phase
        round_ = before[1] if round_ is None and before is not None else round_
        if before != (phase, round_):
            self._phase = (phase, round_)
            self._on_progress(Progress(phase=phase, round=round_, bytes_in=self._bytes_in, bytes_out=self._bytes_out))


def _poll_timeout_s(session: JoinedSession) -> float:
    return session.answer.poll_s + _POLL_MARGIN_S


def _call(app: ClientApp, message: Message, context: Context) -> tuple[Message, RunEnd | None]:
    """Run foreign code; what it raises becomes a Flower Error for the strategy.

    Where training raised, this client's part ends too. Everything else fails one message, as in Flower: an evaluation,
    a query, a message that the app has no function for.
    """
    try:
        reply = app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"ClientApp returned {type(reply).__name__}, not a Message")
    except (Exception, SystemExit) as error:
        _log.exception("ClientApp raised", extra={"message_type": message.metadata.message_type})
        reason = name_error(error)
        failure = Message(Error(flwr_private.CLIENT_APP_RAISED, reason), reply_to=message)
        has_ended = kind_of(message) == MessageType.TRAIN and not flwr_private.is_unhandled(error)
        return failure, RunEnd(outcome=Outcome.FAILED, reason=reason) if has_ended else None
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        # Flower's mods answer the app's own reply where that is not what they expect (1.41 LocalDpMod).
        content = reply.error if reply.has_error() else reply.content
        reply = Message(content, reply_to=message)
    return reply, None


def _encode(reply: Message, session: JoinedSession) -> tuple[Frame, str | None]:
    """Frame a reply, or return why it cannot be sent."""
    answer = session.answer
    compression = None
    if answer.compress_level:
        compression = LineCompression(level=answer.compress_level, threshold_bytes=answer.compress_threshold_bytes)
    try:
        content = None if reply.has_error() else encode_content(reply.content, compress_with(compression))
        frame = encode_message(reply, content)
    except FrameError as error:
        return Frame(head=b"", buffers=(), num_bytes=0, message_bytes=0), str(error)
    if frame.message_bytes > answer.max_message_bytes:
        return frame, str(MessageTooLargeError(frame.message_bytes, answer.max_message_bytes))
    return frame, None
