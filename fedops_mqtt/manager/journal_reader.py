"""Reads of the journal for people: the API, exports, the page. They have connections and threads of their own.

The manager's own turns never wait for one: with SQLite in WAL mode, as with PostgreSQL, a reader holds up no writer.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from pydantic import ValidationError
from sqlalchemy import JSON, Connection, Engine, Row, Select, Table, func, select, true
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from fedops_mqtt.core.run import Run
from fedops_mqtt.manager import tables
from fedops_mqtt.manager.database import is_away
from fedops_mqtt.manager.errors import JournalAwayError, UnreadableRunError
from fedops_mqtt.manager.run_record import count_members, load_run
from fedops_mqtt.protocol.wire import first_problem

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

NUM_READERS = 4
"""Reads at a time; more wait. Each takes one connection of the engine's pool."""


READ_LIMIT_S = 30.0
"""A longer read is given up with an error: the database does not answer."""


class JournalReader:
    """Only `call` may be used from the event loop; every other method blocks.

    Raises:
        SQLAlchemyError: from every method, when the database cannot be read.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="journal-read")
        self._is_closed = False
        self._unreadable: dict[str, str] = {}
        """By run id: what is wrong with its row."""

    def close(self) -> None:
        """Wait for the reads under way, and take no more."""
        self._is_closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def call(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function of a reader on one of the readers' threads.

        Raises:
            JournalAwayError: the database cannot be reached, or does not answer; or this manager ends.
        """
        if self._is_closed:
            raise JournalAwayError("this manager ends")
        reading = asyncio.get_running_loop().run_in_executor(self._threads, lambda: method(*args, **kwargs))
        try:
            async with asyncio.timeout(READ_LIMIT_S):
                return await reading
        except DBAPIError as error:
            if not (isinstance(error, OperationalError | InterfaceError) or is_away(error)):
                raise
            raise JournalAwayError(str(error.orig).strip()) from error
        except TimeoutError as error:
            raise JournalAwayError(f"no answer within {READ_LIMIT_S:g} s") from error

    def find_run(self, run_id: str) -> Run | None:
        """Return one run, archived or not.

        Raises:
            UnreadableRunError: its row cannot be read.
        """
        with self._engine.connect() as connection:
            state = connection.execute(select(tables.runs.c.state).where(tables.runs.c.run_id == run_id)).scalar()
            members = members_of(connection, [run_id]).get(run_id, {})
        found = None if state is None else self.readable(run_id, load_run, state, members)
        if state is not None and found is None:
            raise UnreadableRunError(run_id, self._unreadable[run_id])
        return found

    def has_run(self, run_id: str) -> bool:
        """Return whether a run is in the journal, readable or not."""
        return bool(self.rows(select(tables.runs.c.run_id).where(tables.runs.c.run_id == run_id)))

    def readable(self, run_id: str, load: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what `load` makes of a run's row; None, and an error in the log, once, where it cannot be read.

        Such a row is of a program with other rules, or was written by hand: the other runs need their manager.
        """
        try:
            return load(*args, **kwargs)
        except ValueError as error:
            problem = first_problem(error, "row") if isinstance(error, ValidationError) else str(error)
            if self._unreadable.get(run_id) != problem:
                self._unreadable[run_id] = problem
                facts = {"run_id": run_id, "problem": problem}
                logger.error("a run in the journal cannot be read, it is left out", extra=facts)
            return None

    def ended_runs(self, run_ids: Collection[str]) -> set[str]:
        """Return which of these runs are known here and have ended."""
        ended = tables.runs.c.run_id.in_(list(run_ids)) & tables.runs.c.outcome.is_not(None)
        return {row.run_id for row in self.rows(select(tables.runs.c.run_id).where(ended))}

    def list_runs(
        self, *, task_id: str | None = None, app_digest: str | None = None, limit: int = 50, offset: int = 0
    ) -> tuple[list[tuple[Run, dict[str, int]]], int]:
        """Return a page of runs, newest first, and how many there are; of members only how many have which status.

        A run that cannot be read is left out of both: the next page is asked for from the number of runs so far.
        """
        table = tables.runs
        where = table.c.task_id == task_id if task_id else true()
        where = where & (table.c.app_digest == app_digest) if app_digest else where
        while True:
            unreadable = list(self._unreadable)
            wanted = where & table.c.run_id.not_in(unreadable) if unreadable else where
            newest = select(table.c.run_id, table.c.state, table.c.member_counts).where(wanted)
            newest = newest.order_by(table.c.created_at.desc()).limit(limit).offset(offset)
            with self._engine.connect() as connection:
                total = connection.execute(select(func.count()).select_from(table).where(wanted)).scalar_one()
                rows = connection.execute(newest).all()
                # Of runs that a program wrote which did not count them.
                members = members_of(connection, [row.run_id for row in rows if row.member_counts is None])
            found = [
                (self.readable(row.run_id, load_run, row.state, members.get(row.run_id, {})), row.member_counts)
                for row in rows
            ]
            runs = [(run, count_members(run) if counts is None else counts) for run, counts in found if run is not None]
            if len(runs) == len(rows):
                return runs, int(total)

    def list_events(self, *, run_id: str | None = None, after_id: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Return events after an id, oldest first."""
        table = tables.events
        query = select(table).where(table.c.id > after_id).order_by(table.c.id).limit(limit)
        return self.dicts(query.where(table.c.run_id == run_id) if run_id else query)

    def newest_of_client(self, name: str, client_mac: str, *, limit: int = 1000) -> list[dict[str, Any]]:
        """Return the newest rows of `events` or `client_metrics` about a client, the oldest of them first."""
        table = {"events": tables.events, "client_metrics": tables.client_metrics}[name]
        query = select(table).where(table.c.client_mac == client_mac).order_by(table.c.id.desc()).limit(limit)
        return self.dicts(query)[::-1]

    def newest_of_run(self, name: str, run_id: str, *, limit: int = 1000) -> list[dict[str, Any]]:
        """Return the newest rows of `events` or `client_metrics` of a run, the oldest of them first."""
        table = {"events": tables.events, "client_metrics": tables.client_metrics}[name]
        query = select(table).where(table.c.run_id == run_id).order_by(table.c.id.desc()).limit(limit)
        return self.dicts(query)[::-1]

    def list_rounds(self, run_id: str) -> list[dict[str, Any]]:
        """Return a run's rounds, each as the last launch that came to it saw it."""
        query = select(tables.rounds).where(tables.rounds.c.run_id == run_id)
        rows = self.dicts(query.order_by(tables.rounds.c.round, tables.rounds.c.launch))
        return list({row["round"]: row for row in rows}.values())

    def list_client_metrics(
        self, run_id: str, *, client_mac: str | None = None, after_id: int = 0, limit: int = 1000
    ) -> list[dict[str, Any]]:
        """Return what a run's clients measured, oldest first."""
        table = tables.client_metrics
        query = select(table).where(table.c.run_id == run_id, table.c.id > after_id).order_by(table.c.id).limit(limit)
        return self.dicts(query.where(table.c.client_mac == client_mac) if client_mac else query)

    def export_columns(self, table: Table, run_id: str) -> tuple[list[str], int]:
        """Return the columns that a run's rows of `events` or `client_metrics` take, and the last id among them.

        A JSON column takes one for each name that is in it, found by the database: a million rows are not carried here
        for that.
        """
        names = []
        with self._engine.connect() as connection:
            last = connection.execute(select(func.max(table.c.id)).where(table.c.run_id == run_id)).scalar()
            for column in table.c:
                if not isinstance(column.type, JSON):
                    names.append(column.name)
                    continue
                inner = func.json_each(column).table_valued("key")
                found = select(inner.c.key).select_from(table).join(inner, true()).where(table.c.run_id == run_id)
                keys = connection.execute(found.distinct().order_by(inner.c.key)).scalars()
                names += [f"{column.name}.{key}" for key in keys]
        return names, int(last or 0)

    def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        """Return a query's rows."""
        with self._engine.connect() as connection:
            return connection.execute(query).all()

    def dicts(self, query: Select[Any]) -> list[dict[str, Any]]:
        """Return a query's rows as dictionaries."""
        return [dict(row._mapping) for row in self.rows(query)]


def members_of(connection: Connection, run_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the states of the members of some runs, by run and MAC, in one query."""
    table = tables.members
    found: dict[str, dict[str, str]] = {}
    for row in connection.execute(select(table).where(table.c.run_id.in_(run_ids))):
        found.setdefault(row.run_id, {})[row.client_mac] = row.state
    return found
