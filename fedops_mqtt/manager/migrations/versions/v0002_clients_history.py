"""A client's history is found without reading everybody's."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add two indexes."""
    op.create_index("ix_events_client", "events", ["client_mac", "id"])
    op.create_index("ix_client_metrics_client", "client_metrics", ["client_mac", "id"])
