"""Optuna's storage in the same database as our tables, under the same durability settings.

Knows: how Optuna's tables come to be, and how its storage words the failures of a database. Does not know: the trials
in it, which follow ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, event
from sqlalchemy.exc import DBAPIError, IntegrityError

from scheduler_search.errors import DatabaseError
from scheduler_search.storage.database import StudyDatabase
from scheduler_search.storage.engine import database_errors, server_of, shown

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

_ATTEMPTS = 50
_PAUSE_SECONDS = 0.1


def optuna_storage(database: StudyDatabase) -> RDBStorage:
    """Optuna's storage on the database's URL; creates Optuna's tables at the first call. Closed with ``database``.

    Raises:
        DatabaseError: the database cannot be written, or another version of Optuna wrote its tables.
    """
    storage = database.retrying(lambda: _opened(database))
    event.listen(storage.engine, "connect", server_of(database.url).configure)
    # Drop the connections that Optuna opened before the listener was there.
    _close(storage)
    database.close_later(lambda: _close(storage))
    return storage


@contextmanager
def optuna_errors(database: StudyDatabase) -> Iterator[None]:
    """Turn what Optuna's storage raises of the database into DatabaseError; ConnectionLostError where it went away."""
    from optuna.exceptions import StorageInternalError

    with database_errors(database.url):
        try:
            yield
        except StorageInternalError as error:
            if isinstance(error.__cause__, DBAPIError):
                raise error.__cause__ from error
            raise


def _opened(database: StudyDatabase) -> RDBStorage:
    # Imported here and not at the top: commands that only read the study database must start quickly.
    from optuna.storages import RDBStorage

    url, options = database.url.render_as_string(hide_password=False), server_of(database.url).engine_options()
    with optuna_errors(database):
        with database.alone():
            # A storage that cannot be made cannot be closed either: it must keep no connections.
            _close(_made(database, url, {**options, "poolclass": NullPool}))
        return RDBStorage(url, engine_kwargs=options, skip_compatibility_check=True, skip_table_creation=True)


def _made(database: StudyDatabase, url: str, options: dict[str, Any]) -> RDBStorage:
    """Try until Optuna's tables are there: processes that create them at the same time make each other fail."""
    from optuna.storages import RDBStorage

    for attempt in range(_ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except DBAPIError as error:
            raced = isinstance(error, IntegrityError) or "already exists" in str(error.orig)
            if not raced or attempt == _ATTEMPTS - 1:
                raise
        except RuntimeError as error:
            rule = "Optuna's tables must be of the installed version"
            raise DatabaseError(rule, actual=str(error), place=shown(database.url)) from error
        time.sleep(_PAUSE_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def _close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()
