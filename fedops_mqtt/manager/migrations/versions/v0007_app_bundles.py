"""The published bundles themselves: whichever host leads has them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add a table; a bundle that was published before is in it once it is published again."""
    op.create_table(
        "app_bundles",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
