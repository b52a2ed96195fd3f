"""Creating our schema in an empty database, and refusing a database that is not ours.

Knows: which tables are ours, which are Optuna's, and the version of ours. Does not know: what is in them.
"""

from __future__ import annotations

import sqlalchemy
from sqlalchemy import insert, inspect, select

from scheduler_search.errors import DatabaseError
from scheduler_search.storage.tables import SCHEMA_VERSION, Table, VersionRow

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
        DatabaseError: the database belongs to something else, is newer, or was left half made.
    """
    present = set(inspect(connection).get_table_names())
    ours = set(Table.metadata.tables)
    if not present & ours:
        _refuse_foreign(present, place)
        return False
    if VersionRow.__tablename__ not in present:
        raise _half_made(f"no table {VersionRow.__tablename__}", place)
    _check_version(list(connection.scalars(select(VersionRow.version))), place)
    if ours - present:
        raise _half_made(f"no table {min(ours - present)}", place)
    return True


def create_schema(connection: sqlalchemy.Connection) -> None:
    """Create all our tables and the version row in the transaction of ``connection``."""
    Table.metadata.create_all(connection, checkfirst=False)
    connection.execute(insert(VersionRow).values(version=SCHEMA_VERSION))


def _refuse_foreign(present: set[str], place: str) -> None:
    foreign = sorted(present - OPTUNA_TABLES)
    if foreign:
        raise DatabaseError(
            "a study database must be empty or written by this program",
            actual=f"tables {', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}",
            place=place,
            remedy="name another database",
        )


def _check_version(versions: list[int], place: str) -> None:
    if len(versions) != 1:
        raise _half_made(f"{len(versions)} version rows", place)
    if versions[0] != SCHEMA_VERSION:
        raise DatabaseError(
            f"this program reads version {SCHEMA_VERSION} of the study database",
            actual=f"version {versions[0]}",
            place=place,
            remedy="use the program that wrote it, or a newer one",
        )


def _half_made(actual: str, place: str) -> DatabaseError:
    remedy = "restore it from a backup, or name another database"
    return DatabaseError("a study database must be complete", actual=actual, place=place, remedy=remedy)
