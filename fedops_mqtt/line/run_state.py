"""Where the strategy's thread and the line's thread meet: members, messages and sessions under one lock.

The strategy's thread posts messages and waits for replies; the line's thread (an event loop) serves the clients. Every
change of a member is passed to `on_member` in the line's thread, in order; it must not block.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message

from fedops_mqtt.line.codec import FrameReader
from fedops_mqtt.line.errors import LineRefusedError
from fedops_mqtt.line.members import LineMember, MemberChange, Members
from fedops_mqtt.line.message_queue import MessageQueue, OutboundMessage
from fedops_mqtt.line.wire import ControlLine, JoinRequest
from fedops_mqtt.protocol import Outcome, Phase, ReasonCode, RunOutcome

SIGNAL_LOOK_S = 1.0
"""How often a wait of the main thread, which alone handles signals, is interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOver:
    """How the run ended."""

    outcome: RunOutcome
    reason: str


@dataclass(slots=True, kw_only=True)
class Upload:
    """A reply that is arriving; it outlives connection and session: a retry goes on where the last try broke."""

    reader: FrameReader
    turn: int = 0
    """Grows with each request that takes the upload over; an older request sees that and stops feeding."""


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """One joined process, as the line's thread sees it. Events are touched in the line's thread only."""

    id: str
    mac: str
    node_id: int
    has_messages: asyncio.Event = field(default_factory=asyncio.Event)
    control: asyncio.Event = field(default_factory=asyncio.Event)
    orders: deque[ControlLine] = field(default_factory=deque)
    is_over: bool = False
    has_had_control: bool = False
    has_disconnected: bool = False
    unanswered_pings: int = 0
    polls: int = 0


_log = logging.getLogger(__name__)
_SESSION_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiter:
    """One wait for replies: woken by the last of them, not by each.

    Flower's own classic server, which a ServerApp may start, waits in a thread a client: 500 of them, woken by each
    reply, take a second of processor time a phase; woken by their own, a twentieth.
    """

    changed: threading.Condition
    remaining: set[str]

    def has_all_with(self, message_id: str) -> bool:
        """Strike one off; True when none remains."""
        self.remaining.discard(message_id)
        return not self.remaining


class RunState:
    """Shared state of one LineServer; every public method may be called from any thread."""

    def __init__(self, *, on_member: Callable[[MemberChange], None]) -> None:
        self._on_member = on_member
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiters: dict[str, _Waiter] = {}
        self._members = Members()
        self._queue = MessageQueue()
        self._sessions: dict[str, Session] = {}
        self._uploads: dict[str, Upload] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._over: RunOver | None = None
        self._is_closed = False
        self._app_sent: dict[str, int] = {}
        self._app_sent_at = 0.0
        self._absent_since: dict[str, float] = {}

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the line's event loop, in its own thread; before this, no client can be reached."""
        self._loop = loop
        self._loop_thread = threading.get_ident()

    # For the strategy's thread

    @property
    def members(self) -> Mapping[str, LineMember]:
        """Everybody who ever joined, by MAC, as they are now."""
        with self._changed:
            return dict(self._members.by_mac)

    @property
    def over(self) -> RunOver | None:
        """How the run ended, once it is interrupted or closed."""
        return self._over

    def present_node_ids(self) -> list[int]:
        """Return who can be given work right now."""
        with self._changed:
            return self._members.present_node_ids()

    @property
    def app_sent_at(self) -> float:
        """When a client last received more of the run's app than it had before (monotonic; 0: nobody did)."""
        return self._app_sent_at

    def wait_for_present(
        self, num_clients: int, deadline: Callable[[], float], *, max_clients: int | None = None
    ) -> list[int]:
        """Wait until so many are present, or cannot be any more, the run has ended, or `deadline` (monotonic) has come.

        `deadline` is asked again whenever it has come. Returns who is there.
        """

        def is_known() -> bool:
            return len(self._members.present_node_ids()) >= num_clients or self.is_hopeless(num_clients, max_clients)

        with self._changed:
            self._wait(is_known, deadline)
            return self._members.present_node_ids()

    def is_hopeless(self, num_clients: int, max_clients: int | None) -> bool:
        """Return whether so many cannot be present any more: too many of `max_clients` have ended."""
        with self._changed:
            num_ended = sum(member.outcome is not None for member in self._members.by_mac.values())
            return max_clients is not None and max_clients - num_ended < num_clients

    def missing_since(self, num_clients: int, max_clients: int | None) -> float | None:
        """Return since when (monotonic) so many of all who can come have not been there; 0.0: for ever.

        None while some of `max_clients` may still come for the first time: until its control request is open, a client
        has not come.
        """
        with self._changed:
            members = self._members.by_mac.values()
            num_came = sum(member.has_joined or member.outcome is not None for member in members)
            if max_clients is None or num_came < max_clients:
                return None
            absent = [member for member in members if not member.is_present and member.outcome is None]
            latest_first = sorted((self._absent_since[member.mac] for member in absent), reverse=True)
            num_missing = num_clients - len(self._members.present_node_ids())
            return latest_first[num_missing - 1] if 0 < num_missing <= len(latest_first) else 0.0

    def post(self, outbound_messages: Iterable[OutboundMessage]) -> None:
        """Post messages; one to a node that is not there is answered with a Flower Error at once."""
        with self._changed:
            present = set(self._members.present_node_ids())
            posted = [
                outbound_message
                for outbound_message in outbound_messages
                if self._post(outbound_message, outbound_message.node_id in present)
            ]
            self._wake_pollers({outbound_message.node_id for outbound_message in posted})

    def wait_for_replies(self, message_ids: Sequence[str], deadline: float) -> list[OutboundMessage]:
        """Wait until all are answered, the run has ended, or `deadline` has come; return what is still owed."""
        with self._changed:
            waiter = _Waiter(changed=threading.Condition(self._lock), remaining=set())
            self._refresh(waiter, message_ids)
            self._waiters.update(dict.fromkeys(message_ids, waiter))
            self._wait(lambda: not self._queue.owing(message_ids), lambda: deadline, waiter.changed)
            for message_id in message_ids:
                self._waiters.pop(message_id, None)
            return self._queue.owing(message_ids)

    def owing(self, message_ids: Sequence[str]) -> list[OutboundMessage]:
        """Return the messages among these that are not answered."""
        with self._changed:
            return self._queue.owing(message_ids)

    def collect(self, message_ids: Sequence[str]) -> list[Message]:
        """Take the replies that are there."""
        with self._changed:
            self._forget_uploads(message_ids)
            return self._queue.collect(message_ids)

    def is_idle(self) -> bool:
        """Return whether nothing is on its way to or from any node."""
        with self._changed:
            return self._queue.is_empty

    def withdraw(self, message_ids: Sequence[str]) -> None:
        """Stop waiting for replies to these."""
        with self._changed:
            self._forget_uploads(message_ids)
            self._queue.withdraw(message_ids)

    def drop(self, mac: str, outcome: Outcome, reason: str, code: ReasonCode | None = None) -> None:
        """End a member: what it owes is answered with a Flower Error at once, and its process is stopped."""
        with self._changed:
            member = self._members.by_mac.get(mac)
            changes = self._members.end(mac, outcome, reason, code)
            if member is not None and changes:
                order = ControlLine(stop=reason, outcome=outcome if outcome is Outcome.FAILED else None)
                self._end_session(member.session, order)
                self._settle(changes, f"{mac} {outcome}: {reason}")

    def interrupt(self, over: RunOver) -> None:
        """Make every wait of the strategy's thread end; clients are informed at `close`."""
        with self._changed:
            self._over = self._over or over
            self._notify_all()

    def close(self, over: RunOver, deadline: float) -> list[str]:
        """Inform every client that the run has ended, wait until they know; return the MACs that were not reached."""
        with self._changed:
            self._over, self._is_closed = over, True
            order = ControlLine(gone=over.outcome, reason=over.reason)
            for session in self._sessions.values():
                session.orders.append(order)
            self._wake(list(self._sessions.values()))
            self._notify_all()
            while self._members.present_node_ids() and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(left_s)
            return [member.mac for member in self._members.by_mac.values() if member.is_present]

    # For the line's thread

    def admit(self, request: JoinRequest) -> Session:
        """Let a process in that showed the right token.

        Raises:
            LineRefusedError: the run has ended, or the attempt has.
        """
        with self._changed:
            self._check_open()
            self._members.check_join(request.client_mac, request.instance, request.attempt)
            known = self._members.by_mac.get(request.client_mac)
            before = None if known is None else self._sessions.get(known.session)
            session_id = secrets.token_hex(_SESSION_BYTES)
            evicted = self._members.join(request.client_mac, request.instance, request.attempt, session_id)
            self._absent_since.setdefault(request.client_mac, time.monotonic())  # until its control request is open
            member = self._members.by_mac[request.client_mac]
            session = Session(id=session_id, mac=member.mac, node_id=member.node_id)
            self._replace(before, session, evicted)
            return session

    def session(self, session_id: str | None) -> Session:
        """Return a live session.

        Raises:
            LineRefusedError: the run has ended (410), or there is no such session here (any more): join again (409).
        """
        with self._changed:
            session = self._sessions.get(session_id or "")
            if session is not None and not session.is_over:
                return session
            self._check_open()
            raise LineRefusedError(status=409, code="no_session", reason="unknown session: join again")

    def attach(self, session: Session) -> None:
        """The session's control request is open."""
        with self._changed:
            session.has_had_control = True
            changes = self._members.attach(session.id)
            if changes:  # none for a session that another one has replaced meanwhile
                self._absent_since.pop(session.mac)
            self._settle(changes, None)

    def detach(self, session: Session, reason: str) -> None:
        """The session's control request has ended."""
        with self._changed:
            if self._is_closed:
                self.note_departed(session)
            if session.is_over:
                return
            changes = self._members.detach(session.id, reason)
            self._absent_since.setdefault(session.mac, time.monotonic())
            self._end_session(session.id, None)
            self._settle(changes, f"{session.mac} lost: {reason}")

    def expect_control(self, session: Session, within_s: float) -> None:
        """Count a process as lost that joined and opens no control request: what it owes holds up a round."""

        def look() -> None:
            if not (session.has_had_control or self._is_closed):
                self.detach(session, f"no control request within {within_s:g} s of its join")

        if self._loop is not None:
            self._loop.call_later(within_s, look)

    def leave(self, session: Session, outcome: Outcome, reason: str | None, code: ReasonCode | None = None) -> None:
        """A process reports how it ended."""
        with self._changed:
            changes = self._members.end(session.mac, outcome, reason, code)
            self._end_session(session.id, None)
            self._settle(changes, f"{session.mac} {outcome}: {reason or 'left'}")

    def note_departed(self, session: Session) -> None:
        """A process has been informed that the run has ended."""
        if self._over is None:
            return
        is_good = self._over.outcome is RunOutcome.COMPLETED
        outcome = Outcome.FINISHED if is_good else Outcome.STOPPED
        self.leave(session, outcome, None if is_good else f"run {self._over.outcome}: {self._over.reason}")

    def next_message(self, session: Session) -> OutboundMessage | None:
        """Return what this client has to do next.

        Raises:
            LineRefusedError: nothing more, the run has ended.
        """
        with self._changed:
            self._check_open()
            return self._queue.head(session.node_id)

    def outbound_message(self, message_id: str) -> OutboundMessage | None:
        """Return a message that is outstanding."""
        with self._changed:
            return self._queue.outbound_message(message_id)

    def refuse(self, session: Session, reason: str) -> None:
        """A client's reply does not fit: it is out as failed, unless another attempt has its place by now."""
        with self._changed:
            if not session.is_over:
                _log.warning("reply refused", extra={"client_mac": session.mac, "reason": reason})
                self.drop(session.mac, Outcome.FAILED, reason)

    def expects(self, session: Session, message_id: str) -> bool:
        """Return whether a reply to this message would be taken."""
        with self._changed:
            return self._queue.expects(session.node_id, message_id)

    def was_answered(self, session: Session, message_id: str) -> bool:
        """Return whether this reply arrived before."""
        with self._changed:
            return self._queue.was_answered(session.node_id, message_id)

    def upload(self, message_id: str) -> Upload | None:
        """Return the reply to this message that has begun to arrive, if any."""
        with self._changed:
            return self._uploads.get(message_id)

    def start_upload(self, message_id: str, upload: Upload) -> None:
        """Keep a reply while it arrives, in the place of what had arrived before."""
        with self._changed:
            self._uploads[message_id] = upload

    def forget_upload(self, message_id: str) -> None:
        """Let go of what has arrived of a reply."""
        with self._changed:
            self._forget_uploads([message_id])

    def answer(self, session: Session, message_id: str, reply: Message) -> bool:
        """Take a reply; False if it is not waited for any more."""
        with self._changed:
            is_taken = self._queue.answer(session.node_id, message_id, reply)
            waiter = self._waiters.get(message_id)
            if waiter is not None and waiter.has_all_with(message_id):
                waiter.changed.notify_all()
            return is_taken

    def progress(self, session: Session, phase: Phase, round_: int | None = None) -> None:
        """A client entered a phase, as far as the server can see."""
        with self._changed:
            if not session.is_over:
                self._notify(self._members.progress(session.mac, phase, round_))

    def count(self, session: Session, *, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """Add to a client's counters."""
        with self._changed:
            self._members.count(session.mac, bytes_in=bytes_in, bytes_out=bytes_out)

    def note_app_sent(self, mac: str, num_bytes: int) -> None:
        """A client has received the run's app up to this byte; what it had before is no news."""
        with self._changed:
            if num_bytes > self._app_sent.get(mac, -1):
                self._app_sent[mac] = num_bytes
                self._app_sent_at = time.monotonic()

    def _forget_uploads(self, message_ids: Sequence[str]) -> None:
        for message_id in message_ids:
            self._uploads.pop(message_id, None)

    def _check_open(self) -> None:
        if self._is_closed and self._over is not None:
            raise LineRefusedError(status=410, code="gone", reason=self._over.reason, outcome=self._over.outcome)

    def _post(self, outbound_message: OutboundMessage, is_present: bool) -> bool:
        if is_present:
            self._queue.post(outbound_message)
        else:
            self._queue.refuse(outbound_message, f"node {outbound_message.node_id} is not in the run")
        return is_present

    def _replace(self, before: Session | None, session: Session, evicted: LineMember | None) -> None:
        self._sessions[session.id] = session
        if before is not None:
            self._end_session(before.id, None if evicted is None else ControlLine(stop="replaced by a newer attempt"))
        if evicted is not None:
            self._queue.fail(evicted.node_id, f"attempt {evicted.attempt} was replaced by a newer one")
            self._notify_all()

    def _end_session(self, session_id: str, order: ControlLine | None) -> None:
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        session.is_over = True
        if order is not None:
            session.orders.append(order)
        self._wake([session])

    def _settle(self, changes: list[MemberChange], reason: str | None) -> None:
        """Pass changes on; with a reason, the members have ended and what they owe is answered."""
        for change in changes:
            if reason is not None:
                self._queue.fail(change.member.node_id, reason)
        self._notify(changes)
        self._notify_all()

    def _wait(
        self, is_done: Callable[[], bool], deadline: Callable[[], float], changed: threading.Condition | None = None
    ) -> None:
        changed = changed or self._changed
        in_main_thread = threading.current_thread() is threading.main_thread()
        while self._over is None and not is_done() and (left_s := deadline() - time.monotonic()) > 0:
            # A signal that comes just before a thread blocks, or to another thread, is handled when this one wakes.
            changed.wait(min(left_s, SIGNAL_LOOK_S) if in_main_thread else left_s)

    def _notify_all(self) -> None:
        self._changed.notify_all()
        for waiter in set(self._waiters.values()):
            self._refresh(waiter, waiter.remaining)
            waiter.changed.notify_all()

    def _refresh(self, waiter: _Waiter, message_ids: Iterable[str]) -> None:
        """Leave just what is still owed: the line may have answered some of it, or a reply come before the wait."""
        owing = {outbound_message.message_id for outbound_message in self._queue.owing(message_ids)}
        waiter.remaining.clear()
        waiter.remaining.update(owing)

    def _wake_pollers(self, node_ids: set[int]) -> None:
        self._wake([session for session in self._sessions.values() if session.node_id in node_ids], messages_only=True)

    def _wake(self, sessions: list[Session], *, messages_only: bool = False) -> None:
        if sessions:
            self._soon(_set_events, sessions, messages_only)

    def _notify(self, changes: list[MemberChange]) -> None:
        for change in changes:
            self._soon(self._on_member, change)

    def _soon(self, function: Callable[..., None], *arguments: object) -> None:
        """Call in the line's loop; from that loop itself without waking it through its pipe."""
        if self._loop is None or self._loop.is_closed():
            return
        is_inside = threading.get_ident() == self._loop_thread
        call = self._loop.call_soon if is_inside else self._loop.call_soon_threadsafe
        call(function, *arguments)


def _set_events(sessions: list[Session], messages_only: bool) -> None:
    for session in sessions:
        session.has_messages.set()
        if not messages_only:
            session.control.set()
