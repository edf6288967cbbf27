"""What Alembic runs: the connection is ours, and so is its transaction."""

from alembic import context

from lamella.store.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=True)
context.run_migrations()
