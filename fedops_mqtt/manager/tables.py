"""The journal's tables. A change of them needs a step in `migrations/versions`, and its number as `REVISION`."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

REVISION = "0009"
"""Of these tables, and the newest in `migrations/versions`. Revisions are numbers: a greater one is newer."""

metadata = MetaData()

_ID = String(64)
_ROW_ID = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up by itself only in a column declared INTEGER."""


class _Text(TypeDecorator[str]):
    """Text of any program; NUL, for which PostgreSQL has no place, is an escape."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Return what is written."""
        return value and value.replace("\0", r"\x00")


def _run_id() -> Column[str]:
    return Column("run_id", _ID, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True)


revision = Table("alembic_version", metadata, Column("version_num", String(32), primary_key=True))

schema = Table("schema_version", metadata, Column("version", Integer, primary_key=True))
"""For programs before Alembic, which look here and leave a greater version alone."""

runs = Table(
    "runs",
    metadata,
    Column("run_id", _ID, primary_key=True),
    Column("task_id", _ID, nullable=False, index=True),
    Column("state", Text, nullable=False),
    Column("secret", String(128), nullable=False),
    Column("task_config", Text),
    Column("member_counts", JSON(none_as_null=True)),
    Column("created_at", Float, nullable=False, index=True),
    Column("ended_at", Float),
    Column("outcome", String(16)),
    Column("app_digest", String(64), index=True),
    Column("reason", _Text),
    Column("is_archived", Boolean, nullable=False, default=False, index=True),
)

members = Table(
    "members",
    metadata,
    _run_id(),
    Column("client_mac", String(17), primary_key=True),
    Column("state", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False, index=True),
    Column("kind", String(64), nullable=False),
    Column("run_id", _ID),
    Column("task_id", _ID),
    Column("client_mac", String(17)),
    Column("detail", JSON, nullable=False),
    Index("ix_events_run", "run_id", "id"),
    Index("ix_events_client", "client_mac", "id"),
)

rounds = Table(
    "rounds",
    metadata,
    _run_id(),
    Column("launch", Integer, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("duration_s", Float),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    Column("gl_model", BigInteger, nullable=False),
)

client_metrics = Table(
    "client_metrics",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False, index=True),
    Column("run_id", _ID),
    Column("task_id", _ID, nullable=False),
    Column("client_mac", String(17), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("round", BigInteger, nullable=False),
    Column("values", JSON, nullable=False),
    Index("ix_client_metrics_run", "run_id", "client_mac", "id"),
    Index("ix_client_metrics_of_run", "run_id", "id"),  # pages of a whole run: else each sorts all of it anew
    Index("ix_client_metrics_client", "client_mac", "id"),
)

launches = Table(
    "launches",
    metadata,
    _run_id(),
    Column("launch", Integer, primary_key=True),
    Column("log_path", Text, nullable=False),
    Column("secret_file", Text, nullable=False),
    Column("pid", BigInteger),
    Column("process_key", String(64)),
    Column("exit_reason", _Text),
    Column("host", String(256)),
)

apps = Table(
    "apps",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("task_id", _ID, nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("bundle", Text, nullable=False),
    Column("signature", Text),
    Column("published_at", Float, nullable=False),
    Column("is_current", Boolean, nullable=False),
    UniqueConstraint("task_id", "digest", name="uq_apps_task_digest"),
)
"""The versions of each task's app in the order in which they were published."""

app_bundles = Table(
    "app_bundles",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
"""Their bundles, at most `app_max_bytes` each."""

lease = Table(
    "lease",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("term", BigInteger, nullable=False),
    Column("holder", String(256), nullable=False),
    Column("held_until", Float, nullable=False),
    Column("last_write", BigInteger, nullable=False, server_default="0"),
)

boots = Table(
    "boots", metadata, Column("boot", String(64), primary_key=True), Column("booted_at", Float, nullable=False)
)
"""The leaders' clocks: when a host was booted by the clock of its last leader, one row a boot in which it had one."""

epochs = Table(
    "epochs", metadata, Column("owner", String(256), primary_key=True), Column("epoch", BigInteger, nullable=False)
)
