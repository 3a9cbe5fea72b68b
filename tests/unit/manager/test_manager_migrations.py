"""A database of an earlier program becomes that of today, on SQLite and on PostgreSQL; a newer one is left alone."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from fedops_mqtt.manager import migrations, tables
from fedops_mqtt.manager.errors import JournalVersionError
from fedops_mqtt.manager.journal import Batch, Journal, JournalEvent
from fedops_mqtt.protocol import RunOutcome

HERE = Path(__file__).parent
OLD, OPEN = "digits-20261126-100000-aaaa", "digits-20261126-110000-bbbb"


def write_journal_of_0_1_0(url: str) -> None:
    engine = create_engine(url)
    statements = (HERE / f"journal_0_1_0.{engine.dialect.name}.sql").read_text(encoding="utf-8").split(";\n")
    with engine.begin() as connection:
        for statement in filter(str.strip, statements):
            connection.exec_driver_sql(statement.replace("%", "%%"))
    engine.dispose()


def test_a_journal_of_0_1_0_is_brought_up_to_date_and_nothing_in_it_is_lost(database_url: str) -> None:
    write_journal_of_0_1_0(database_url)
    with Journal(database_url) as journal:
        with journal.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, tables.metadata) == []
        (found,) = journal.open_runs()
        assert (found.run.run_id, found.secret, found.task, found.run.launch) == (OPEN, b"s" * 32, None, 1)
        assert sorted(found.run.members) == ["02:00:00:00:00:01", "02:00:00:00:00:02"]
        runs, total = journal.reader.list_runs()
        assert ({run.run_id: run.outcome for run, _ in runs}, total) == ({OLD: RunOutcome.FAILED, OPEN: None}, 2)
        assert [row["metrics"] for row in journal.reader.list_rounds(OLD)] == [{"loss": 0.5}]
        assert [row["values"] for row in journal.reader.list_client_metrics(OPEN)] == [{"loss": 0.25}]
        assert [(each.pid, each.host) for each in journal.list_launches(OPEN)] == [(77, None)]
        assert journal.read_epoch("manager") == 7
        journal.write(Batch(events=[JournalEvent(at=1.0, kind="K")]))
    with Journal(database_url) as again:
        assert len(again.reader.list_events()) == 5


def test_a_new_database_is_what_the_migrations_lead_to() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [tables.REVISION]


@pytest.mark.parametrize("is_old", [True, False])
def test_managers_that_start_together_find_one_database(database_url: str, is_old: bool) -> None:
    if is_old:
        write_journal_of_0_1_0(database_url)

    def start(_: int) -> str:
        with Journal(database_url) as journal, journal.engine.connect() as connection:
            return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())

    with ThreadPoolExecutor(4) as managers:
        assert list(managers.map(start, range(4))) == [tables.REVISION] * 4


def test_a_manager_waits_for_another_one_that_makes_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "manager.db"

    def start() -> str:
        with Journal(f"sqlite:///{file}") as journal, journal.engine.connect() as connection:
            return str(connection.execute(text("PRAGMA journal_mode")).scalar_one())

    with closing(sqlite3.connect(file, isolation_level=None)) as other, ThreadPoolExecutor(1) as managers:
        other.execute("CREATE TABLE made_first (x)")
        other.execute("BEGIN IMMEDIATE")
        started = managers.submit(start)
        with pytest.raises(TimeoutError):
            started.result(timeout=1)
        other.execute("COMMIT")
        assert started.result() == "wal"


@pytest.mark.parametrize("table", ["alembic_version SET version_num = '0099'", "schema_version SET version = 99"])
def test_a_journal_of_a_newer_program_is_left_alone(database_url: str, table: str) -> None:
    with Journal(database_url) as journal, journal.engine.begin() as connection:
        if table.startswith("schema"):  # a program that went back to counting by itself
            connection.execute(text("DELETE FROM alembic_version"))
        connection.execute(text(f"UPDATE {table}"))
    with pytest.raises(JournalVersionError, match=r"schema version 0099.*newer program"), Journal(database_url):
        pass


def test_a_program_before_alembic_detects_that_the_database_is_not_its_own(database_url: str) -> None:
    write_journal_of_0_1_0(database_url)
    for _ in range(2):
        with Journal(database_url) as journal, journal.engine.connect() as connection:
            assert int(connection.execute(text("SELECT version FROM schema_version")).scalar_one()) > 2


def test_a_migration_is_made_whole_or_not_at_all(database_url: str) -> None:
    """What stops it half-way may be a full disk: the next start begins anew."""
    write_journal_of_0_1_0(database_url)
    engine = create_engine(database_url)
    with engine.begin() as connection:  # the last step finds no table to change
        connection.execute(text("ALTER TABLE launches RENAME TO away"))
    with pytest.raises(Exception, match="launches"), Journal(database_url):
        pass
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO launches"))
    engine.dispose()
    with Journal(database_url) as journal:
        assert len(journal.open_runs()) == 1
