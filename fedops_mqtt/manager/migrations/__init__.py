"""The steps from the tables of one program to those of the next, as Alembic reads them."""
