"""The manager's database: connections to SQLite and PostgreSQL, migrations, and errors of an unavailable server."""

import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.pool import QueuePool

from fedops_mqtt.manager import tables
from fedops_mqtt.manager.errors import JournalVersionError

BUSY_TIMEOUT_S = 30
"""How long SQLite waits for another process that writes (a backup, a person with a shell)."""

_BUSY_POLL_S = 0.05
_PRIMARY = 0xFF
"""Of SQLite's extended result codes, the part that is the primary one."""

IDLE_IN_TRANSACTION_S = 3
"""PostgreSQL ends a transaction whose client has stopped in the middle of it: its locks would keep a standby out."""

NETWORK_TIMEOUT_S = 5
"""A connection to a database host that has vanished from the network is given up after this."""

_POSTGRESQL = {
    "connect_timeout": NETWORK_TIMEOUT_S,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "keepalives_count": NETWORK_TIMEOUT_S - 1,
    "tcp_user_timeout": NETWORK_TIMEOUT_S * 1000,
    "options": f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_S}s",
}
"""libpq's parameters (PostgreSQL 15, 34.1.2); those that the URL has are taken from there."""

_ALONE = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(430613)"}
"""Two managers that start together bring a database up to date one after the other, each wholly or not at all."""


def open_engine(url: URL, *, num_connections: int) -> Engine:
    """Return an engine; nothing is connected yet.

    Raises:
        ArgumentError, ImportError: the URL cannot be used, or its driver is not installed.
    """
    is_postgresql = url.get_backend_name() == "postgresql"
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=num_connections,
        pool_pre_ping=is_postgresql,  # connections of before an outage are noticed without an error
        json_serializer=_to_json,
        connect_args={name: value for name, value in _POSTGRESQL.items() if name not in url.query}
        if url.drivername == "postgresql+psycopg"
        else {},
    )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    return engine


def is_away(error: Exception) -> bool:
    """Return whether an error only means that a database server cannot be reached or does not serve.

    False for a file: an error of its operating system (a full disk) lasts until a person acts.
    """
    if not isinstance(error, DBAPIError) or type(error.orig).__module__.startswith("sqlite3"):
        return False
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def migrate(connection: Connection, name: str) -> None:
    """Bring a database to the tables of this program; an empty one gets them. One that has them is not written to.

    Raises:
        JournalVersionError: a newer program wrote it.
    """
    if _revision(connection) == tables.REVISION:
        return  # a leader that was frozen while it wrote keeps no standby out
    if alone := _ALONE.get(connection.dialect.name):
        connection.execute(text(alone))
    found = _revision(connection)
    if found == "":
        tables.metadata.create_all(connection)
        connection.execute(insert(tables.revision).values(version_num=tables.REVISION))
        connection.execute(insert(tables.schema).values(version=int(tables.REVISION)))
    elif found < tables.REVISION:
        _upgrade(connection, found)
    elif found > tables.REVISION:
        raise JournalVersionError(name, found, tables.REVISION)


def _revision(connection: Connection) -> str:
    """Return the revision of a database's tables; empty for one without any."""
    names = inspect(connection).get_table_names()
    for table in (tables.revision, tables.schema):
        if table.name in names and (found := connection.execute(select(table)).scalar()) is not None:
            return str(found).zfill(len(tables.REVISION))
    return ""


def _upgrade(connection: Connection, found: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.stamp(config, found)  # a program before Alembic counted its versions in a table of its own
    command.upgrade(config, "head")


def _set_up_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
    _use_wal(cursor)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Set the journal mode, in the time that SQLite waits for others: for this it does not wait by itself.

    Two managers that start together on a new file meet here.
    """
    give_up_at = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & _PRIMARY == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= give_up_at:
                raise
            time.sleep(_BUSY_POLL_S)
        else:
            return


_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def _to_json(value: Any) -> str:
    """Return JSON that every database takes: what is not finite is null, as on the bus, and NUL is an escape."""
    written = orjson.dumps(value).decode()
    return _NUL.sub(r"\1\\\\x00", written) if "\\u0000" in written else written
