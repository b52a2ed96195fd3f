"""What Alembic runs to migrate: our tables only, in the caller's transaction.

Knows: that our version table lies beside Optuna's, which is Alembic's own by default. Does not know: any version.
"""

from alembic import context

from scheduler_search.storage.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    # SQLite undoes CREATE and DROP as well as PostgreSQL does, although Alembic assumes that it does not.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
