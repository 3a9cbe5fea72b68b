"""Alembic's way in: the manager gives its own connection, within its own transaction."""

from alembic import context

from fedops_mqtt.manager import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables.metadata)
context.run_migrations()
