"""The program of the training process (`python -m fedops_mqtt.training.process`): does one job, read from stdin.

Descriptor 1 is for our reports only, under another number: whatever the user's code prints goes to stderr. The process
must not outlive its daemon: a lifeline pipe has the kernel kill its whole group when the daemon's end is closed.
"""

import argparse
import fcntl
import gc
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, Protocol

from fedops_mqtt.protocol import ReasonCode
from fedops_mqtt.training.pipe import Job, Redirect, Reporter, Stop, parse_command

if TYPE_CHECKING:
    from flwr.client import NumPyClient

    from fedops_mqtt.training.app_loading import MakeRegister, Register

logger = logging.getLogger(__name__)


class Steerable(Protocol):
    """What can be steered while it trains."""

    def redirect(self, server_ip: str, launch: int) -> None:
        """The server is somewhere else now."""

    def stop(self, reason: str, code: ReasonCode | None = None) -> None:
        """The training is to end."""


def main() -> int:
    """Do the job that stdin gives and report how it ended; the exit status carries nothing more."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    arguments = _arguments()
    _hold_lifeline(arguments.lifeline)
    commands, reporter = _private_ends()
    if arguments.ready:
        _import_flower()
    line = commands.readline()
    if not line:
        return 0  # the daemon had ended before it sent anything
    job = parse_command(line)
    if not isinstance(job, Job):
        raise SystemExit(f"expected a job first, got {job.command}")
    return _do(job, commands, reporter, _make_register_of(arguments.register))


def _import_flower() -> None:
    # A small device waits for these imports at each training. Nothing that they make is garbage, and flwr imports
    # httpx, whose command line (click, pygments, rich) is not used: httpx 0.28 does without it where it is missing.
    gc.disable()
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    importlib.import_module("fedops_mqtt.training.run")
    gc.freeze()
    gc.enable()


def _do(job: Job, commands: IO[bytes], reporter: Reporter, make_register: "MakeRegister") -> int:
    _import_flower()
    from fedops_mqtt.training.run import TrainingRun

    training = TrainingRun(job=job, reporter=reporter, make_register=make_register)
    threading.Thread(target=_obey, args=(commands, training), name="commands", daemon=True).start()
    reporter.ended(training.run())
    return training.close()


def _make_register_of(spec: str | None) -> "MakeRegister":
    """Return what `--register` names, imported when an app first registers a model: it is half the package."""

    def make_register(job: Job, cfg: Any) -> "Register":
        def register(registration: Mapping[str, Any]) -> "NumPyClient":
            if spec is None:
                from fedops_mqtt.model_types import RegistrationError

                raise RegistrationError("this training process was started without what makes clients of models")
            module, _, attribute = spec.partition(":")
            found: MakeRegister = getattr(importlib.import_module(module), attribute)
            return found(job, cfg)(registration)

        return register

    return make_register


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fedops_mqtt.training.process", description="Started by the client daemon.")
    parser.add_argument("--lifeline", type=int, default=None, help="descriptor that ends when the daemon does")
    parser.add_argument("--ready", action="store_true", help="import Flower before the job is read")
    parser.add_argument("--register", metavar="MODULE:ATTRIBUTE", help="makes clients of the models that apps register")
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
            case Redirect(server_ip=server_ip, launch=launch):
                training.redirect(server_ip, launch)
            case Stop(reason=reason, reason_code=code):
                training.stop(reason, code)
            case Job():
                logger.error("a second job is not taken")
    _die_with_daemon()


def _die_with_daemon() -> None:
    """Where the lifeline cannot do it (macOS), the end of stdin shows that the daemon has ended."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
