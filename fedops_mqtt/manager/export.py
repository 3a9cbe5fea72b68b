"""Tables of a run as CSV. The long ones are written by a process of their own, `python -m fedops_mqtt.manager.export`.

A million rows made into text in the manager's process would take the interpreter from its loop, some milliseconds at a
time: triggers came three times as late meanwhile.
"""

import asyncio
import csv
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any

import orjson
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from fedops_mqtt.manager import tables
from fedops_mqtt.manager.database import open_engine
from fedops_mqtt.manager.errors import JournalAwayError
from fedops_mqtt.manager.journal_reader import JournalReader
from fedops_mqtt.protocol import visible

EXPORT_PAGE = 1000
"""Rows that are in memory at a time."""
NUM_EXPORTS = 2
"""Processes at a time, some 50 MB each; more downloads wait."""
STALL_S = 60
"""An export whose reader takes nothing for this long is ended: it blocks the next one."""
NICENESS = 10
"""The manager and its servers come first."""
_PART_BYTES = 64 * 1024
_FAILED = 1

Row = Mapping[str, Any]


class Export(StrEnum):
    """What of a run can be had as a table."""

    ROUNDS = "rounds"
    METRICS = "metrics"
    EVENTS = "events"
    CLIENTS = "clients"


class Exporter:
    """Starts and ends the processes; used in one event loop.

    Args:
        database_url: with its password; a process reads it from its stdin.
    """

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._turns = asyncio.Semaphore(NUM_EXPORTS)

    async def parts(self, run_id: str, what: Export) -> AsyncIterator[bytes]:
        """Yield a run's metrics or events as CSV.

        Raises:
            JournalAwayError: the database cannot be read, or the reader stalled; the CSV is incomplete.
        """
        async with self._turns:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", __name__),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                process.stdin.write(orjson.dumps([self._url, run_id, what]))
                process.stdin.close()
                while part := await process.stdout.read(_PART_BYTES):
                    yield part
                problem = (await process.stderr.read()).decode(errors="replace").strip()
                if await process.wait() != 0:
                    raise JournalAwayError(problem or f"the export ended with {process.returncode}")
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


def main() -> int:
    """Write the table that stdin asks for to stdout."""
    os.nice(NICENESS)
    url, run_id, what = orjson.loads(sys.stdin.buffer.read())
    try:
        for part in journal_table(JournalReader(open_engine(make_url(url), num_connections=1)), run_id, Export(what)):
            signal.alarm(STALL_S)
            sys.stdout.buffer.write(part.encode())
            sys.stdout.buffer.flush()
            signal.alarm(0)
    except SQLAlchemyError as error:
        print(getattr(error, "orig", None) or error, file=sys.stderr)
        return _FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter prints an error as it ends
        return _FAILED
    return 0


def journal_table(reader: JournalReader, run_id: str, what: Export) -> Iterator[str]:
    """Yield a run's metrics or events as CSV in parts; what is written meanwhile is left out. Blocks."""
    read: Callable[..., list[dict[str, Any]]]
    if what is Export.METRICS:
        table, read = tables.client_metrics, partial(reader.list_client_metrics, run_id)
    else:
        table, read = tables.events, partial(reader.list_events, run_id=run_id)
    columns, last = reader.export_columns(table, run_id)
    yield from to_csv(columns, _pages(read, last))


def table_of(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a few rows as CSV, with a column for each name that is in one of them."""
    columns = list(dict.fromkeys(name for row in rows for name, _ in _flatten(row)))
    yield from to_csv(columns, [rows])


def to_csv(columns: Sequence[str], pages: Iterable[Sequence[Row]]) -> Iterator[str]:
    """Yield pages of rows as CSV (RFC 4180) with a head; a dictionary becomes a column for each of its names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writerow({name: _safe(name) for name in columns})
    for page in pages:
        writer.writerows({name: _safe(value) for name, value in _flatten(row)} for row in page)
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def _pages(read: Callable[..., list[dict[str, Any]]], last: int) -> Iterator[list[dict[str, Any]]]:
    """Yield a run's rows in pages, up to the id that was the last when the columns were found."""
    after = 0
    while after < last and (rows := read(after_id=after, limit=EXPORT_PAGE)):
        after = rows[-1]["id"]
        yield [row for row in rows if row["id"] <= last]


def _flatten(row: Row) -> Iterable[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            for inner, each in value.items():
                yield f"{name}.{inner}", each
        elif name == "at" and isinstance(value, float):
            yield name, datetime.fromtimestamp(value, UTC).isoformat(timespec="milliseconds")
        else:
            yield name, value


def _safe(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is quoted, control characters are shown: devices choose both.

    A spreadsheet skips blanks before a formula, and takes the wide forms of its signs for the signs.
    """
    if isinstance(value, float | int | None):
        return value  # most of what there is
    if isinstance(value, str):
        text = visible(value, keep="\n\t")
        return f"'{text}" if text.lstrip().startswith(_FORMULA_SIGNS) else text
    return value.isoformat() if isinstance(value, datetime) else json.dumps(value)


_FORMULA_SIGNS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")

if __name__ == "__main__":
    sys.exit(main())
