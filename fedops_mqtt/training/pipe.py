"""Commands and reports between the daemon and its training process, one JSON object a line.

Commands go down on stdin, the job first; reports come up on the pipe that was stdout. A token travels in the job only,
never in arguments or environment, where other users of the machine could read it.
"""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter

from fedops_mqtt.core.client import Identity
from fedops_mqtt.core.client_state import PhaseReport
from fedops_mqtt.protocol import KnownCode, MetricsKind, Outcome, Phase, RunStart, clip
from fedops_mqtt.protocol.messages import WireModel
from fedops_mqtt.protocol.values import Count, Plain, Scalars

MAX_LINE_BYTES = 64 * 1024
"""A longer line is no report and is dropped; the bus would not take it either."""


class WandbOptions(WireModel):
    """Where the run is shown on Weights & Biases."""

    key: str | None = Field(default=None, repr=False)
    project: str
    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    """Which run, app and settings these numbers are of."""


class Job(WireModel):
    """The first line: everything a training process needs to know.

    It goes from a program to its child: the limits of messages on the bus are not those of a configuration here.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    command: Literal["start"] = "start"
    app: str
    live_task: int | None = None
    """Descriptor of a file with live objects in the place of an app (see `live_task`)."""
    import_paths: tuple[str, ...]
    """Folders to find the app's module in, before Python's own."""
    identity: Identity
    start: RunStart
    state_folder: Path
    ca_file: Path | None = None
    join_s: float
    rejoin_s: float
    partition_id: int | None = None
    num_partitions: int | None = None
    node_config: dict[str, Plain] = Field(default_factory=dict)
    """More of `Context.node_config`."""
    run_config: dict[str, Plain] = Field(default_factory=dict)
    """The user's configuration, for `Context.run_config`; values below a nested name are joined by dots."""
    wandb: WandbOptions | None = None


class Redirect(WireModel):
    """The server was launched again and is somewhere else now."""

    command: Literal["redirect"] = "redirect"
    server_ip: str
    launch: int


class Stop(WireModel):
    """The training is to end."""

    command: Literal["stop"] = "stop"
    reason: str
    reason_code: KnownCode = None


Command = Job | Redirect | Stop


class MetricsReport(WireModel):
    """Numbers of one message that the app answered."""

    report: Literal["metrics"] = "metrics"
    kind: MetricsKind
    round: Count = 0
    values: Scalars


class EndedReport(WireModel):
    """How it ended; `outcome` is None when the run had ended before this client joined, or its app was refused."""

    report: Literal["ended"] = "ended"
    outcome: Outcome | None
    reason: Annotated[str | None, BeforeValidator(clip)] = None
    """Clipped to what a status takes: however long an exception's text is, the report of it arrives."""
    reason_code: KnownCode = None


Report = PhaseReport | MetricsReport | EndedReport

_DEFERRED = ConfigDict(defer_build=True)
_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="command")], config=_DEFERRED)
_REPORT: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="report")], config=_DEFERRED)


def parse_command(line: bytes | str) -> Command:
    """Return the command in a line.

    Raises:
        ValueError: the line is invalid.
    """
    return _COMMAND.validate_json(line)


def parse_report(line: bytes) -> Report:
    """Return the report in a line.

    Raises:
        ValueError: the line is invalid.
    """
    return _REPORT.validate_json(line)


def to_line(message: Command | Report) -> bytes:
    """Return the line, newline included, of a command or report."""
    return message.model_dump_json().encode() + b"\n"


logger = logging.getLogger(__name__)

_PHASE_INTERVAL_S = 0.05
"""At most this often a change of phase is reported; trivial rounds have hundreds of changes a second."""
_LEAVE_S = 2.0
"""Once the run has ended for this client, the user's code has this long before the process leaves without it."""


class Reporter:
    """Reports to the daemon, from any thread; only the newest phase is reported, at most every 50 ms."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._phase: PhaseReport | None = None
        self._news = threading.Event()
        self._has_trained = False
        self._has_ended = False
        threading.Thread(target=self._write_phases, name="phases", daemon=True).start()

    def phase(self, report: PhaseReport) -> None:
        """Report the phase of the training: the first time that it trains at once, else soon."""
        with self._lock:
            self._phase = report
            if report.phase is Phase.TRAINING and not self._has_trained:
                self._has_trained = True
                self._write_phase()
        self._news.set()

    def metrics(self, report: MetricsReport) -> None:
        """Report metrics, now."""
        with self._lock:
            if not self._has_ended:
                self._write(report)

    def ended(self, report: EndedReport) -> None:
        """Report how it ended; only the first time counts, and nothing is reported after it."""
        with self._lock:
            if not self._has_ended:
                self._write_phase()
                self._write(report)
                self._has_ended = True

    def _write_phase(self) -> None:
        report, self._phase = self._phase, None
        if report is not None and not self._has_ended:
            self._write(report)

    def _write(self, report: Report) -> None:
        try:
            self._pipe.write(to_line(report))
            self._pipe.flush()
        except BrokenPipeError:
            logger.debug("the daemon no longer reads our reports")

    def _write_phases(self) -> None:
        pause = threading.Event()
        while True:
            self._news.wait()
            self._news.clear()
            with self._lock:
                self._write_phase()
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
