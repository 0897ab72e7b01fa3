"""Runs the steps on the connection that :mod:`interlatent_live.store.sql` hands over."""

from alembic import context

from interlatent_live.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
