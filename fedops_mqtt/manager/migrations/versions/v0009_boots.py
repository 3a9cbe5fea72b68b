"""A manager's clock goes on in the next one of the same boot, whatever the host's was set to meanwhile."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add a table."""
    op.create_table(
        "boots",
        sa.Column("boot", sa.String(64), primary_key=True),
        sa.Column("booted_at", sa.Float, nullable=False),
    )
