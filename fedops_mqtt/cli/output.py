"""What a verb prints: a table for people, padded lines in a pipe, one JSON object a line for programs.

In a pipe there is no colour, nothing is cut off, and a record is a line.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fedops_mqtt.protocol import first_line, visible
from fedops_mqtt.runtime.systemd import ExitCode, exit_code_of_disk

Row = Mapping[str, Any]


def print_records(records: Sequence[Row], columns: Sequence[str], *, is_json: bool) -> None:
    """Print records as JSON lines, or as a table of some of their fields."""
    if is_json:
        print_records_as_lines(records, is_json=True)
    elif sys.stdout.isatty():
        _print_table(records, columns)
    else:
        print("\n".join(pad_lines([columns, *([as_text(row.get(name)) for name in columns] for row in records)])))


def print_records_as_lines(records: Iterable[Row], *, is_json: bool) -> None:
    """Print one line a record as soon as it is there: a JSON object, or `kind name=value …`."""
    for record in records:
        print(json.dumps(record, default=str) if is_json else as_line(record), flush=True)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Show the progress in one line on stderr that changes; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(Text(text))


def pad_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines of aligned columns, two blanks between them."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def as_text(value: Any) -> str:
    """Return a field's value as one line of text."""
    match value:
        case None | "":
            return "-"
        case float():
            return f"{value:.4g}"
        case dict():
            return " ".join(f"{as_text(name)}={as_text(each)}" for name, each in value.items()) or "-"
        case _:
            return visible(" ".join(str(value).split()))


def as_pairs(values: Mapping[str, Any]) -> str:
    """Return settings as `--run-config` takes them."""
    return " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items())


def in_a_cell(value: Any) -> str:
    """Return what a cell has room for: below its first line a reason may have a traceback."""
    shown = as_text(first_line(value) if isinstance(value, str) else value)
    return f"{shown} …" if isinstance(value, str) and "\n" in value.strip() else shown


def readable(text: str) -> str:
    """Return a text of many lines with its control characters shown: a terminal must not obey what others wrote."""
    return visible(text, keep="\n\t")


def as_line(record: Row) -> str:
    """Return a record as one line: its kind, then `name=value` for every fact that it has."""
    facts = ((name, value) for name, value in record.items() if name != "kind" and value not in (None, "", {}))
    return " ".join([str(record["kind"]), *(f"{name}={_quoted(as_text(value))}" for name, value in facts)])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if " " in text else text


def _print_table(records: Sequence[Row], columns: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in records:
        table.add_row(*(Text(in_a_cell(row.get(name))) for name in columns))
    Console().print(table)


class FatalError(Exception):
    """A verb cannot go on. The message states what happened and what to do."""

    def __init__(self, message: str, code: ExitCode) -> None:
        self.code = code
        super().__init__(message)


def known_errors() -> tuple[type[Exception], ...]:
    """Return the errors that `explain` has a message for; loads their modules."""
    from fedops_mqtt.bus import BusError
    from fedops_mqtt.enrolment.errors import EnrolmentError
    from fedops_mqtt.protocol import IdentityError
    from fedops_mqtt.runtime.machine import NoHomeError
    from fedops_mqtt.runtime.settings_file import SettingsFileError
    from fedops_mqtt.runtime.task_config import ConfigurationError

    return (FatalError, BusError, SettingsFileError, ConfigurationError, NoHomeError, EnrolmentError, IdentityError)


def explain(error: Exception) -> tuple[str, ExitCode]:
    """Return the message for the person, and the exit status."""
    from fedops_mqtt import bus
    from fedops_mqtt.enrolment.errors import EnrolmentError
    from fedops_mqtt.protocol import IdentityError
    from fedops_mqtt.runtime.machine import NoHomeError
    from fedops_mqtt.runtime.settings_file import SettingsFileError
    from fedops_mqtt.runtime.task_config import ConfigurationError

    match error:
        case FatalError():
            return str(error), error.code
        case (
            SettingsFileError()
            | ConfigurationError()
            | NoHomeError()
            | EnrolmentError()
            | IdentityError()
            | bus.ClientIdError()
        ):
            return str(error), ExitCode.CONFIG
        case bus.CredentialsError():
            return f"{error}. Set FEDOPS_MQTT_BROKER_USER and FEDOPS_MQTT_BROKER_PASSWORD.", ExitCode.NO_PERMISSION
        case bus.BrokerUrlError():
            return f"{error}. Correct --broker or the file it names.", ExitCode.CONFIG
        case bus.ConnectError():
            return (
                f"{error}. Is it running? `fedops-mqtt broker` starts one here; --broker takes the URL of another one.",
                _UNAVAILABLE,
            )
        case bus.ConflictingInstanceError():
            return str(error), ExitCode.CONFLICT
        case bus.PublishRefusedError():
            return str(error), ExitCode.NO_PERMISSION
        case bus.EpochFileError():
            return f"{error}. Choose a folder that can be written with --state-dir.", exit_code_of_disk(error.__cause__)
        case bus.MosquittoError():
            return str(error), _UNAVAILABLE
        case _:
            return str(error), ExitCode.FAILED


_UNAVAILABLE = ExitCode.UNAVAILABLE
