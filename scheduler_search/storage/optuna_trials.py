"""Optuna's storage in the same database as our tables, under the same durability settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import event

from scheduler_search.storage.database import StudyDatabase
from scheduler_search.storage.engine import BUSY_SECONDS, database_errors, set_pragmas

if TYPE_CHECKING:
    from optuna.storages import RDBStorage


def optuna_storage(database: StudyDatabase) -> RDBStorage:
    """Optuna's storage on the database's URL; creates Optuna's tables at the first call. Closed with ``database``.

    Optuna is imported here and not at the top: commands that only read the study database must start quickly.

    Raises:
        DatabaseError: the database cannot be written.
    """
    from optuna.storages import RDBStorage

    url = database.url
    with database_errors(url):
        text = url.render_as_string(hide_password=False)
        storage = RDBStorage(text, engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})
    event.listen(storage.engine, "connect", set_pragmas)
    # Drop the connections that Optuna opened before the listener was there.
    storage.remove_session()
    storage.engine.dispose()
    database.close_later(lambda: _close(storage))
    return storage


def _close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()
