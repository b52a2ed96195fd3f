"""Making and upgrading our schema, and refusing a database that is not ours.

Knows: which tables are ours, which are Optuna's, and the versions of ours. Does not know: what is in them, or what
changed between two versions (``migrations``).
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy
from sqlalchemy import inspect, text

from scheduler_search.errors import DatabaseError
from scheduler_search.storage.server import Server, shown
from scheduler_search.storage.tables import Table

# Oldest first. Alembic, which keeps them too, must not be imported just to open a database; a test holds them equal.
VERSIONS = ("0001",)
VERSION_TABLE = "scheduler_search_version"
VERSION_COLUMN = "version_num"

# Optuna must not be imported just to open a database; a test holds this list equal to Optuna's own.
OPTUNA_TABLES = frozenset(
    {
        "alembic_version",
        "studies",
        "study_directions",
        "study_system_attributes",
        "study_user_attributes",
        "trial_heartbeats",
        "trial_intermediate_values",
        "trial_params",
        "trial_system_attributes",
        "trial_user_attributes",
        "trial_values",
        "trials",
        "version_info",
    }
)


def is_ready(connection: sqlalchemy.Connection, place: str) -> bool:
    """Whether our schema is there; False for a database that is empty or holds Optuna's tables only.

    Raises:
        DatabaseError: the database belongs to something else, is older or newer, or was left half made.
    """
    version = recorded_version(connection, place)
    if version is None:
        return False
    if version != VERSIONS[-1]:
        raise DatabaseError(
            f"this version of the study database must be {VERSIONS[-1]}",
            actual=f"the older {version}",
            place=place,
            remedy="run `scheduler-search database upgrade`, after a backup",
        )
    missing = set(Table.metadata.tables) - set(inspect(connection).get_table_names())
    if missing:
        raise _half_made(f"no table {min(missing)}", place)
    return True


def recorded_version(connection: sqlalchemy.Connection, place: str) -> str | None:
    """One of VERSIONS; None for a database that is empty or holds Optuna's tables only.

    Raises:
        DatabaseError: the database belongs to something else, is newer, or was left half made.
    """
    inspector = inspect(connection)
    present = set(inspector.get_table_names())
    if not present & {VERSION_TABLE, *Table.metadata.tables}:
        _refuse_foreign(present, place)
        return None
    if VERSION_TABLE not in present:
        raise _half_made(f"no table {VERSION_TABLE}", place)
    if VERSION_COLUMN not in {column["name"] for column in inspector.get_columns(VERSION_TABLE)}:
        raise _half_made("the tables of a program that was never released", place)
    versions = list(connection.scalars(text(f"SELECT {VERSION_COLUMN} FROM {VERSION_TABLE}")))
    return _known_version(versions, place)


def make_schema(server: Server, engine: sqlalchemy.Engine) -> None:
    """Make our tables in an empty database, unless another process has made them in the meantime."""
    place = shown(engine.url)
    with server.migrating(engine) as connection:
        # Asked again under the write lock.
        if not is_ready(connection, place):
            _migrate(connection)


def upgrade_schema(server: Server, engine: sqlalchemy.Engine) -> tuple[str, str]:
    """Bring our tables to the newest version; the version that they had, and the newest.

    Raises:
        DatabaseError: the database is empty, newer, foreign or half made; nothing was changed.
    """
    place = shown(engine.url)
    with server.migrating(engine) as connection:
        version = recorded_version(connection, place)
        if version is None:
            raise missing_schema(place)
        if version != VERSIONS[-1]:
            _migrate(connection)
        is_ready(connection, place)
    return version, VERSIONS[-1]


def missing_schema(place: str) -> DatabaseError:
    """The error of reading an empty database."""
    remedy = "launch a study, or run `scheduler-search database init`"
    return DatabaseError("the study database must exist", actual="an empty database", place=place, remedy=remedy)


def _migrate(connection: sqlalchemy.Connection) -> None:
    # Imported here and not at the top: commands that only read the study database must start quickly.
    from scheduler_search.storage.migrations import migrate

    migrate(connection)


def _refuse_foreign(present: set[str], place: str) -> None:
    foreign = sorted(present - OPTUNA_TABLES)
    if foreign:
        raise DatabaseError(
            "a study database must be empty or written by this program",
            actual=f"tables {', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}",
            place=place,
            remedy="name another database",
        )


def _known_version(versions: Sequence[str], place: str) -> str:
    if len(versions) != 1:
        raise _half_made(f"{len(versions)} version rows", place)
    if versions[0] not in VERSIONS:
        raise DatabaseError(
            f"this program reads version {VERSIONS[-1]} of the study database",
            actual=f"version {versions[0]}",
            place=place,
            remedy="use the program that wrote it, or a newer one",
        )
    return versions[0]


def _half_made(actual: str, place: str) -> DatabaseError:
    remedy = "restore it from a backup, or name another database"
    return DatabaseError("a study database must be complete", actual=actual, place=place, remedy=remedy)
