"""What runs in the training process (`python -m fedops_mqtt.client.client_fl`): one job, told on stdin.

Descriptor 1 is for our reports only, under another number: whatever the user's code prints goes to stderr. The process
must not outlive its daemon: a lifeline pipe has the kernel kill its whole group when the daemon's end is gone.
"""

import argparse
import fcntl
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import IO, Protocol

from fedops_mqtt.client.pipe import (
    Aim,
    EndedReport,
    Job,
    MetricsReport,
    PhaseReport,
    Report,
    Stop,
    parse_command,
    to_line,
)
from fedops_mqtt.protocol import Outcome, Phase

logger = logging.getLogger(__name__)

_PHASE_INTERVAL_S = 0.05
"""At most this often a change of phase is reported; trivial rounds have hundreds of changes a second."""
_LEAVE_S = 2.0
"""Once the run is over for us, the user's code has this long before the process leaves without it."""


class Steerable(Protocol):
    """What can be told something while it trains."""

    def aim(self, server_ip: str, launch: int) -> None:
        """The server is somewhere else now."""

    def stop(self, reason: str) -> None:
        """The training is to end."""


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
            logger.debug("nobody listens to our reports")

    def _tell_phases(self) -> None:
        pause = threading.Event()
        while True:
            self._news.wait()
            self._news.clear()
            with self._lock:
                self._tell_phase()
            pause.wait(_PHASE_INTERVAL_S)


def __getattr__(name: str) -> object:
    """FedOps' names of this module; they need flwr, which the daemon never imports."""
    if name not in ("FLClient", "flower_client_start"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("fedops_mqtt.client.client_fl_client"), name)


def main() -> int:
    """Do the job that stdin tells and report how it ended; the exit status says nothing more."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    _hold_lifeline(_arguments().lifeline)
    commands, reporter = _private_ends()
    line = commands.readline()
    if not line:
        return 0  # the daemon was gone before it had told anything
    job = parse_command(line)
    if not isinstance(job, Job):
        raise SystemExit(f"expected a job first, got {job.command}")
    return _do(job, commands, reporter)


def _do(job: Job, commands: IO[bytes], reporter: Reporter) -> int:
    from fedops_mqtt.client.client_fl_run import Training  # here flwr is imported

    training = Training(job=job, reporter=reporter)
    threading.Thread(target=_obey, args=(commands, training), name="commands", daemon=True).start()
    reporter.ended(training.run())
    return training.close()


def leave_soon(close: Callable[[], int]) -> None:
    """End this process without waiting for code that may still compute; for when its work has lost its purpose."""

    def leave() -> None:
        threading.Event().wait(_LEAVE_S)
        os._exit(close())

    threading.Thread(target=leave, name="leaving", daemon=True).start()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fedops_mqtt.client.client_fl", description="Started by the client daemon.")
    parser.add_argument("--lifeline", type=int, default=None, help="descriptor that ends when the daemon does")
    return parser.parse_args()


def _hold_lifeline(descriptor: int | None) -> None:
    """Ask the kernel for SIGKILL to our whole group when the pipe's other end closes (fcntl(2), F_SETSIG; Linux).

    It needs no thread and no GIL, and unlike PR_SET_PDEATHSIG it takes our own children along.
    """
    if descriptor is None or not hasattr(fcntl, "F_SETSIG") or os.getpgrp() != os.getpid():
        return
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)


def _private_ends() -> tuple[IO[bytes], Reporter]:
    """Take stdin and stdout for ourselves; the user's code reads nothing and prints to stderr."""
    commands = os.fdopen(os.dup(0), "rb")
    reports = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return commands, Reporter(reports)


def _obey(commands: IO[bytes], training: Steerable) -> None:
    for line in commands:
        match parse_command(line):
            case Aim(server_ip=server_ip, launch=launch):
                training.aim(server_ip, launch)
            case Stop(reason=reason):
                training.stop(reason)
            case Job():
                logger.error("a second job is not taken")
    _die_with_daemon()


def _die_with_daemon() -> None:
    """Where the lifeline cannot do it (macOS), the end of stdin tells that the daemon is gone."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def failed(reason: str) -> EndedReport:
    """Return the report of a training that failed."""
    return EndedReport(outcome=Outcome.FAILED, reason=reason)


if __name__ == "__main__":
    sys.exit(main())
