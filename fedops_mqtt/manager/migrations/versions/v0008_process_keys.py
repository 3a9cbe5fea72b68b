"""A launch's process is known by a key that does not move with the clock."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Replace a column; a process that was launched before is found by its environment."""
    op.add_column("launches", sa.Column("process_key", sa.String(64)))
    op.drop_column("launches", "process_started_at")
