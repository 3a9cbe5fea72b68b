"""The training process' presence on the line: a thread that joins, keeps the control request open, and joins again.

It owns this client's session with the server; the training thread only asks for the current session. It ends when the
server ends it, when it is stopped, or when no server was found within the limit; `on_end` gets how it ended, once.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedops_mqtt.line import wire
from fedops_mqtt.line.connection import BROKEN, Connector, LineConnection
from fedops_mqtt.line.errors import FrameError, LineConfigError, LineRefusedError
from fedops_mqtt.protocol import Outcome, ReasonCode, RunOutcome, clip, describe_error
from fedops_mqtt.runtime.backoff import Backoff
from fedops_mqtt.runtime.bearer import bearer_header

_log = logging.getLogger(__name__)

_BACKOFF_FIRST_S = 0.1
_BACKOFF_MAX_S = 3.0
"""A relaunched server is found within this; thousands of clients still spread over it (full jitter)."""
_ASK_S = 10.0
"""Answers to join, pong and leave take no time; after this long there is no server."""
_LEAST_S = 0.1
"""At the very end of its limit a try still gets this long."""
_MISSED_PINGS = 3
"""The server pings; silence for this many periods means that the server, or the network between, has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How this client's part in the run ended. `is_rejected`: it never got in (the run had ended, the token was wrong).

    `run_outcome` is set when the server reported how the whole run ended.
    """

    outcome: Outcome
    reason: str
    reason_code: ReasonCode | None = None
    is_rejected: bool = False
    run_outcome: RunOutcome | None = None


class EndedError(Exception):
    """The session has ended; `end` has how."""

    def __init__(self, end: RunEnd) -> None:
        self.end = end
        super().__init__(end.reason)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JoinedSession:
    """One join: the server's answer, where it is, and the headers that every request carries."""

    answer: wire.JoinAnswer
    connector: Connector
    headers: dict[str, str]


class ClientSession:
    """Runs from `start` to `close`. `redirect`, `stop`, `end` and `invalidate` may come from any thread.

    `on_end` is called once, in the session's thread or in that of the caller that ended it; `on_broken` at each lost
    session, so that transfers on it can be cut short.
    """

    def __init__(
        self,
        *,
        request: wire.JoinRequest,
        token: str | None,
        connector: Connector,
        launch: int,
        make_connector: Callable[[str], Connector],
        join_s: float,
        rejoin_s: float,
        on_end: Callable[[RunEnd], None],
        on_broken: Callable[[], None],
    ) -> None:
        self._request = request
        self._token = token
        self._connector = connector
        self._launch = launch
        self._make_connector = make_connector
        self._rejoin_s = rejoin_s
        self._on_end = on_end
        self._on_broken = on_broken
        self._changed = threading.Condition()
        self._session: JoinedSession | None = None
        self._control: LineConnection | None = None
        self._end: RunEnd | None = None
        self._goodbye: threading.Thread | None = None
        self._has_joined = False
        self._deadline = time.monotonic() + join_s
        self._limit_s = join_s
        self._problem = "no server there"
        self._backoff = Backoff(initial_s=_BACKOFF_FIRST_S, max_s=_BACKOFF_MAX_S)
        self._thread = threading.Thread(target=self._run, name="line-session", daemon=True)

    def start(self) -> None:
        """Start looking for the server."""
        self._thread.start()

    def wait(self) -> JoinedSession:
        """Return the session of now, waiting for one if need be.

        Raises:
            EndedError: there will be none (any more).
        """
        with self._changed:
            while self._end is None and self._session is None:
                self._changed.wait()
            if self._end is not None:
                raise EndedError(self._end)
            assert self._session is not None
            return self._session

    def is_current(self, session: JoinedSession) -> bool:
        """Return whether this session may still be used."""
        with self._changed:
            return self._session is session and self._end is None

    def pause(self, wait_s: float) -> None:
        """Wait, but not beyond a change of the session or the end."""
        with self._changed:
            if self._end is None:
                self._changed.wait(wait_s)

    def redirect(self, server_ip: str, launch: int) -> None:
        """A relaunched server has a new address: leave the old one and join there, with the whole limit anew."""
        try:
            connector = self._make_connector(server_ip)
        except LineConfigError as error:
            self.end(RunEnd(outcome=Outcome.FAILED, reason=str(error)))
            return
        with self._changed:
            if launch < self._launch or self._end is not None:
                return
            self._connector = connector
            self._launch = launch
            self._grant(self._rejoin_s)
            self._backoff.reset()
            self._break()

    def invalidate(self, session: JoinedSession) -> None:
        """The server does not know this session: join again."""
        with self._changed:
            if self._session is session:
                self._break()

    def stop(self, reason: str, code: ReasonCode | None = None) -> None:
        """End because this side wants to; the server is informed."""
        self.end(RunEnd(outcome=Outcome.STOPPED, reason=reason, reason_code=code))

    def end(self, end: RunEnd, *, is_known: bool = False) -> None:
        """End with this, at once; the first end stands. The server is informed, unless it `is_known`."""
        with self._changed:
            if self._end is not None:
                return
            self._end = end
            session, self._session = self._session, None
            if session is not None and not is_known:
                self._send_leave(session, end)
            else:
                self._cut_control()
            self._on_broken()
            self._changed.notify_all()
        self._on_end(end)

    def close(self, *, wait_s: float) -> None:
        """Wait until the server was informed how it ended, at most `wait_s`."""
        deadline = time.monotonic() + wait_s
        for thread in (self._goodbye, self._thread):
            if thread is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _send_leave(self, session: JoinedSession, end: RunEnd) -> None:
        self._goodbye = threading.Thread(target=self._leave, args=(session, end), name="line-goodbye", daemon=True)
        self._goodbye.start()

    def _break(self) -> None:
        """Cut whatever is open; called under the lock."""
        self._session = None
        self._cut_control()
        self._on_broken()
        self._changed.notify_all()

    def _cut_control(self) -> None:
        if self._control is not None:
            self._control.abort()

    def _run(self) -> None:
        while self._end is None:
            try:
                self._attend()
            except LineRefusedError as refusal:
                end = end_of_refusal(refusal, has_joined=self._has_joined)
                if end is None:
                    self._problem = str(refusal)
                else:
                    self.end(end, is_known=True)
            except (*BROKEN, FrameError) as error:
                self._problem = f"{type(error).__name__}: {error}"
                _log.debug("line broken", extra={"problem": self._problem})
            except Exception as error:  # the training thread waits for this one, without a limit of its own
                _log.exception("line has failed")
                self.end(RunEnd(outcome=Outcome.FAILED, reason=describe_error(error)))
            with self._changed:
                if self._session is not None and self._end is None:
                    self._grant(self._rejoin_s)
                    self._break()
            self.pause(self._backoff.next_wait_s())
            if time.monotonic() >= self._deadline and self._end is None:
                where = self._connector.server_ip
                self.end(
                    RunEnd(
                        outcome=Outcome.FAILED,
                        reason=f"no FL server at {where} within {self._limit_s:g} s ({self._problem})",
                    )
                )

    def _attend(self) -> None:
        """Join, open the control request, and read it until it ends."""
        with self._changed:
            if self._end is not None:
                return
            connector, launch = self._connector, self._launch
            self._control = control = connector.connection(within_s=self._left_s())
        try:
            # A server that lets it in and does not count it, or answers a byte at a time, must not outlast the limit
            with control.aborted_after(self._left_s()) as self._join_timer:
                session = self._join(control, connector, launch)
                if session is not None:
                    self._follow(control, session)
        finally:
            # A control request that closes before the goodbye has arrived would look like a death
            with self._changed:
                goodbye = self._goodbye
            if goodbye is not None:
                goodbye.join()
            control.close()

    def _join(self, control: LineConnection, connector: Connector, launch: int) -> JoinedSession | None:
        headers = bearer_header(self._token)
        body = wire.encode_body(self._request)
        timeout_s = min(_ASK_S, self._left_s())
        answer = wire.decode_body(
            wire.JoinAnswer, control.ask("POST", wire.JOIN_PATH, headers=headers, body=body, timeout_s=timeout_s)
        )
        if answer.launch < launch:
            self._problem = f"server there is still launch {answer.launch}, not {launch}"
            return None
        headers[wire.SESSION_HEADER] = answer.session
        return JoinedSession(answer=answer, connector=connector, headers=headers)

    def _follow(self, control: LineConnection, session: JoinedSession) -> None:
        silence_s = _MISSED_PINGS * session.answer.ping_s
        response = control.open("GET", wire.CONTROL_PATH, headers=session.headers, timeout_s=silence_s)
        side = session.connector.connection()
        try:
            while self._end is None and (line := response.readline(wire.MAX_BODY_BYTES)):
                self._obey(wire.decode_body(wire.ControlLine, line), session, side)
            self._problem = "server closed the control request"
        finally:
            side.close()

    def _obey(self, line: wire.ControlLine, session: JoinedSession, side: LineConnection) -> None:
        if line.ping is not None:
            self._publish(session)
            body = wire.encode_body(wire.PongRequest(ping=line.ping))
            side.ask("POST", wire.PONG_PATH, headers=session.headers, body=body, timeout_s=_ASK_S)
        elif line.stop is not None:
            self.end(RunEnd(outcome=line.outcome or Outcome.STOPPED, reason=line.stop), is_known=True)
        elif line.gone is not None:
            self.end(end_of_departed(line.gone, line.reason or "", has_joined=True), is_known=True)

    def _publish(self, session: JoinedSession) -> None:
        """The first ping confirms that the server counts this client: the training thread may use the session now."""
        with self._changed:
            if self._session is session or self._end is not None or session.connector is not self._connector:
                return
            self._join_timer.cancel()
            self._session = session
            self._has_joined = True
            self._backoff.reset()
            self._changed.notify_all()

    def _grant(self, limit_s: float) -> None:
        if self._has_joined:
            self._limit_s = limit_s
            self._deadline = time.monotonic() + limit_s

    def _left_s(self) -> float:
        """A server that accepts and stays silent must not outlast the limit."""
        return max(_LEAST_S, self._deadline - time.monotonic())

    def _leave(self, session: JoinedSession, end: RunEnd) -> None:
        """Report to the server how it ended, before the control request closes and looks like a death."""
        connection = session.connector.connection()
        leave = wire.LeaveRequest(outcome=end.outcome, reason=clip(end.reason), reason_code=end.reason_code)
        body = wire.encode_body(leave)
        try:
            connection.ask("POST", wire.LEAVE_PATH, headers=session.headers, body=body, timeout_s=_ASK_S)
        except (*BROKEN, LineRefusedError) as error:  # the server has ended, or knows already: nothing is left to do
            _log.debug("goodbye was not delivered on the line", extra={"problem": str(error)})
        finally:
            connection.close()
            self._cut_control()


def end_of_refusal(refusal: LineRefusedError, *, has_joined: bool) -> RunEnd | None:
    """Return how a refusal ends this client's part, or None if it should just try (or join) again."""
    match refusal.code:
        case "gone":
            return end_of_departed(RunOutcome(refusal.outcome or "failed"), refusal.reason, has_joined=has_joined)
        case "ended":
            outcome = Outcome(refusal.outcome or "stopped")
            return RunEnd(outcome=outcome, reason=refusal.reason, is_rejected=not has_joined)
        case "evicted" | "token" | "other_run":
            outcome = Outcome.STOPPED if has_joined else Outcome.FAILED
            return RunEnd(outcome=outcome, reason=refusal.reason, is_rejected=not has_joined)
        case "malformed" | "too_large" | "no_such_path" | "no_such_method":
            return RunEnd(outcome=Outcome.FAILED, reason=str(refusal), is_rejected=not has_joined)
    return None


def end_of_departed(outcome: RunOutcome, reason: str, *, has_joined: bool) -> RunEnd:
    """Return what the end of the whole run means for one client: finished, stopped, or never let in."""
    if outcome is RunOutcome.COMPLETED and has_joined:
        return RunEnd(outcome=Outcome.FINISHED, reason=reason, run_outcome=outcome)
    came = "" if has_joined else "came too late: "
    return RunEnd(
        outcome=Outcome.STOPPED,
        reason=f"{came}run {outcome}: {reason}",
        is_rejected=not has_joined,
        run_outcome=outcome,
    )
