"""The versions of each task's published app, and which one a run trains with."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add a table, and a column of runs."""
    op.create_table(
        "apps",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("task_id", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("bundle", sa.Text, nullable=False),
        sa.Column("signature", sa.Text),
        sa.Column("published_at", sa.Float, nullable=False),
        sa.Column("is_current", sa.Boolean, nullable=False),
        sa.UniqueConstraint("task_id", "digest", name="uq_apps_task_digest"),
    )
    op.create_index("ix_apps_digest", "apps", ["digest"])
    op.add_column("runs", sa.Column("app_digest", sa.String(64)))
    op.create_index("ix_runs_app_digest", "runs", ["app_digest"])
