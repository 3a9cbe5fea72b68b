"""The tables of the first programs, which made them themselves; nothing leads here."""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Nothing: a database that has no tables gets those of today."""
