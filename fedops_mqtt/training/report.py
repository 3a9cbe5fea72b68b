"""What a training process says to its daemon: phases, numbers and, once, how it ended.

Nothing here needs flwr: the process may speak before it has imported anything.
"""

import logging
import os
import threading
from collections.abc import Callable
from typing import IO

from fedops_mqtt.protocol import Outcome, Phase
from fedops_mqtt.training.pipe import EndedReport, MetricsReport, PhaseReport, Report, to_line

logger = logging.getLogger(__name__)

_PHASE_INTERVAL_S = 0.05
"""At most this often a change of phase is reported; trivial rounds have hundreds of changes a second."""
_LEAVE_S = 2.0
"""Once the run is over for us, the user's code has this long before the process leaves without it."""


class Reporter:
    """Says things to the daemon, from any thread; only the newest phase is told, at most every 50 ms."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._phase: PhaseReport | None = None
        self._news = threading.Event()
        self._has_trained = False
        self._has_ended = False
        threading.Thread(target=self._tell_phases, name="phases", daemon=True).start()

    def phase(self, report: PhaseReport) -> None:
        """Tell where the training is: the first time that it trains at once, else soon."""
        with self._lock:
            self._phase = report
            if report.phase is Phase.TRAINING and not self._has_trained:
                self._has_trained = True
                self._tell_phase()
        self._news.set()

    def metrics(self, report: MetricsReport) -> None:
        """Tell numbers, now."""
        with self._lock:
            if not self._has_ended:
                self._write(report)

    def ended(self, report: EndedReport) -> None:
        """Tell how it ended; only the first time counts, and nothing is told after it."""
        with self._lock:
            if not self._has_ended:
                self._tell_phase()
                self._write(report)
                self._has_ended = True

    def _tell_phase(self) -> None:
        report, self._phase = self._phase, None
        if report is not None and not self._has_ended:
            self._write(report)

    def _write(self, report: Report) -> None:
        try:
            self._pipe.write(to_line(report))
            self._pipe.flush()
        except BrokenPipeError:
            logger.debug("the daemon no longer reads our reports")

    def _tell_phases(self) -> None:
        pause = threading.Event()
        while True:
            self._news.wait()
            self._news.clear()
            with self._lock:
                self._tell_phase()
            pause.wait(_PHASE_INTERVAL_S)


def leave_soon(close: Callable[[], int]) -> None:
    """End this process without waiting for code that may still compute; for when its work has lost its purpose."""

    def leave() -> None:
        threading.Event().wait(_LEAVE_S)
        os._exit(close())

    threading.Thread(target=leave, name="leaving", daemon=True).start()


def failed(reason: str) -> EndedReport:
    """Return the report of a training that failed."""
    return EndedReport(outcome=Outcome.FAILED, reason=reason)
