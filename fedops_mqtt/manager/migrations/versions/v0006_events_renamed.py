"""Events of a run's history under the names of today."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Rename what 0.1.0 called a stop that was sent."""
    op.execute("UPDATE events SET kind = 'StopSent' WHERE kind = 'StopSaid'")
