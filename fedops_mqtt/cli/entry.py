"""From the command line to an exit status: the table of verbs, and the one place where an error becomes a message."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import click
import typer

from fedops_mqtt.cli import apps, demo, doctor, fleet, history, model, roles, simulate, steer, watch
from fedops_mqtt.cli.options import add_verbs
from fedops_mqtt.cli.output import explain, known_errors
from fedops_mqtt.protocol import visible
from fedops_mqtt.runtime.extras import EXTRAS, how_to_install
from fedops_mqtt.runtime.systemd import ExitCode

VERBS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "simulate": simulate.simulate,
    "broker": roles.broker,
    "client": roles.client,
    "manager": roles.manager,
    "bridge": roles.bridge,
    "clients": steer.clients,
    "runs": steer.runs,
    "start": steer.start,
    "stop": steer.stop,
    "logs": history.logs,
    "metrics": history.metrics,
    "watch": watch.watch,
    "doctor": doctor.doctor,
}
"""In the order in which help lists them."""

_EPILOG = """Every option can be given as an environment variable instead; an option outweighs it. Passwords and tokens
are environment variables only. Exit statuses are in docs/operations.md."""


typer.core.HAS_RICH = False  # else help has `\\[required]`: Typer 0.20 escapes for rich where its markup is off, too


def make_app() -> typer.Typer:
    """Return the Typer app with every verb in it."""
    app = typer.Typer(
        name="fedops-mqtt",
        help="Federated learning on IoT fleets, with MQTT as its lifecycle plane.",
        epilog=_EPILOG,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )
    app.callback()(_version_option)
    add_verbs(app, VERBS)
    app.add_typer(history.make_run_app(), name="run")
    app.add_typer(model.make_model_app(), name="model")
    app.add_typer(apps.make_app_app(), name="app")
    app.add_typer(fleet.make_fleet_app(), name="fleet")
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status; messages go to stderr."""
    try:
        return _run(arguments)
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our pipe ended (`| head`): nothing is left to print to.
        _drop_output()
        return ExitCode.OK
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRAS:
            raise
        _print_error(how_to_install(error))
        return ExitCode.CONFIG
    except known_errors() as error:
        message, code = explain(error)
        _print_error(message)
        return code
    except OSError as error:
        if error.errno not in _DISK_TROUBLE:
            raise
        _drop_output()
        _print_error(f"cannot write {error.filename or 'the output'}: {error.strerror}")
        return ExitCode.FAILED


def _run(arguments: Sequence[str] | None) -> int:
    command = typer.main.get_command(make_app())
    result: Any = command.main(args=arguments, prog_name="fedops-mqtt", standalone_mode=False)
    sys.stdout.flush()
    return result if isinstance(result, int) else ExitCode.OK


def _print_error(message: str) -> None:
    with suppress(OSError):
        print("fedops-mqtt:", visible(message, keep="\n"), file=sys.stderr)


def _drop_output() -> None:
    """Send what is still buffered nowhere: Python would try again at the end, and complain."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from fedops_mqtt import __version__

        print(__version__)
        raise typer.Exit


def _version_option(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_show_version, is_eager=True),
) -> None:
    """Federated learning on IoT fleets, with MQTT as its lifecycle plane."""
