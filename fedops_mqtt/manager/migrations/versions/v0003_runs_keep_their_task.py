"""A run keeps its task, and how many of its clients have which status."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add two columns and an index."""
    op.add_column("runs", sa.Column("task_config", sa.Text))
    op.add_column("runs", sa.Column("member_counts", sa.JSON(none_as_null=True)))
    op.create_index("ix_client_metrics_of_run", "client_metrics", ["run_id", "id"])
