"""How a run is asked to end before its time: by a signal, by a newer launch, by the program; the first to ask wins.

Asking interrupts the line, so that a strategy that waits for clients ends at once; foreign code that computes instead
is given a grace, then interrupted in the main thread as Ctrl-C would.
"""

import _thread
import contextlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from fedops_mqtt.protocol import RunOutcome
from fedops_mqtt.runtime.systemd import end_signals

REPLACED = "replaced"
"""In the place of an outcome: another launch goes on with the run."""


class EndNowError(BaseException):
    """Raised in the main thread inside foreign code that did not end within its grace."""


class Interruptible(Protocol):
    """What a strategy waits on (a LineServer)."""

    def interrupt(self, outcome: RunOutcome, reason: str) -> None:
        """Make every wait raise."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRequest:
    """Who asked for the end, and how the run ends by it."""

    outcome: RunOutcome
    reason: str
    is_replaced: bool = False
    """Another process does this server's work now: leave without a final status."""


class StopControl:
    """The end of one run as it is asked for. `request` may be called from any thread and from signal handlers."""

    def __init__(self, *, grace_s: float, reason_file: Path | None = None) -> None:
        self.requested: EndRequest | None = None
        self._grace_s = grace_s
        self._reason_file = reason_file
        self._lock = threading.RLock()
        self._line: Interruptible | None = None
        self._is_in_foreign_code = False
        self._has_handlers = False
        self._timer: threading.Timer | None = None

    def request(self, request: EndRequest) -> None:
        """Ask for the end; nothing happens when it was asked for before."""
        with self._lock:
            if self.requested is not None:
                return
            self.requested = request
            self._interrupt()
            if self._has_handlers:
                self._timer = threading.Timer(self._grace_s, self._insist)
                self._timer.daemon = True
                self._timer.start()

    @contextmanager
    def foreign_code(self, line: Interruptible) -> Iterator[None]:
        """Mark where the user's code runs: here, and only here, an end that was asked for raises.

        Raises:
            EndNowError: it did not end by itself within the grace.
        """
        with self._lock:
            self._line = line
            self._is_in_foreign_code = True
            if self.requested is not None:
                self._interrupt()
        try:
            yield
        finally:
            self._is_in_foreign_code = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take the signals that end a process as a request to stop while the block runs; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in end_signals()}
        self._has_handlers = True
        try:
            yield
        finally:
            self._has_handlers = False
            if self._timer is not None:
                self._timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.request(self._asked_by(number))
        elif self._is_in_foreign_code:
            raise EndNowError

    def _asked_by(self, number: int) -> EndRequest:
        """Return what whoever sent the signal wrote down before: what became of the run (or `replaced`), then why."""
        try:
            text = self._reason_file.read_text(encoding="utf-8") if self._reason_file else ""
        except (OSError, UnicodeDecodeError):
            text = ""
        outcome_text, _, why = text.partition("\n")
        reason = why.strip() or f"the FL server was ended by {signal.Signals(number).name}"
        outcome = RunOutcome.FAILED if outcome_text == RunOutcome.FAILED else RunOutcome.STOPPED
        return EndRequest(outcome=outcome, reason=reason, is_replaced=outcome_text == REPLACED)

    def _interrupt(self) -> None:
        if self._line is not None and self.requested is not None:
            self._line.interrupt(self.requested.outcome, self.requested.reason)

    def _insist(self) -> None:
        if self._is_in_foreign_code and self._has_handlers:
            with contextlib.suppress(ValueError):  # the signal has no handler any more
                _thread.interrupt_main(signal.SIGTERM)
