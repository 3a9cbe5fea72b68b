"""Where the time of a message goes in a training process: waiting, downloading, computing, uploading.

The numbers of a message are told when it has been uploaded, so that they hold all four.
"""

import threading
import time
from collections.abc import Callable

from fedops_mqtt.protocol import Phase
from fedops_mqtt.training.pipe import MetricsReport

_NAMES = {
    Phase.STARTING: "wait_s",
    Phase.JOINING: "wait_s",
    Phase.WAITING: "wait_s",
    Phase.DOWNLOADING: "download_s",
    Phase.TRAINING: "compute_s",
    Phase.EVALUATING: "compute_s",
    Phase.UPLOADING: "upload_s",
}


class PhaseClock:
    """Adds up the time in each phase, and holds a message's report until its upload is over. For any thread."""

    def __init__(self, tell: Callable[[MetricsReport], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._name: str | None = None
        self._since = time.monotonic()
        self._spent: dict[str, float] = {}
        self._held: MetricsReport | None = None

    def enter(self, phase: Phase) -> None:
        """Begin a phase; a report that is held is told once its upload is over."""
        with self._lock:
            self._stop()
            self._name = _NAMES[phase]
        if phase not in (Phase.UPLOADING, Phase.TRAINING, Phase.EVALUATING):
            self.flush()

    def hold(self, report: MetricsReport) -> None:
        """Keep the numbers of a message that was computed."""
        self.flush()
        self._held = report

    def flush(self) -> None:
        """Tell what is held."""
        with self._lock:
            held, self._held = self._held, None
            if held is None:
                return
            self._stop()
            split = {name: round(self._spent.get(name, 0.0), 6) for name in dict.fromkeys(_NAMES.values())}
            self._spent.clear()
        self._tell(held.model_copy(update={"values": {**held.values, **split}}))

    def _stop(self) -> None:
        now = time.monotonic()
        if self._name is not None:
            self._spent[self._name] = self._spent.get(self._name, 0.0) + now - self._since
        self._since = now
