"""A write that may have been committed as the connection broke is made once; a launch has the host it is on."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add two columns, and mark for a program before Alembic that the tables are not its own."""
    op.add_column("lease", sa.Column("last_write", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("launches", sa.Column("host", sa.String(256)))
    op.execute("UPDATE schema_version SET version = 4")
