"""What is done to a study database as a whole, whatever version it has: asked for, upgraded, copied.

Knows: how each is done without changing anything else. Does not know: what is recorded in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import URL

from scheduler_search.errors import DatabaseError
from scheduler_search.storage.engine import database_errors, make_engine, parse_url, server_of, shown
from scheduler_search.storage.schema import is_ready, upgrade_schema


def database_exists(url: str) -> bool:
    """Whether there is a study database at ``url``; creates nothing.

    Raises:
        DatabaseError: as ``StudyDatabase.open`` where there is something else.
    """
    parsed = parse_url(url)
    if not server_of(parsed).exists(parsed):
        return False
    with _opened(parsed) as engine, server_of(parsed).reader(engine).begin() as connection:
        return is_ready(connection, shown(parsed))


def upgrade_database(url: str) -> tuple[str, str]:
    """Bring a database that an older program wrote to the newest version; the version that it had, and the newest.

    Raises:
        DatabaseError: there is no study database, or it is newer, foreign or half made; nothing was changed.
    """
    parsed = parse_url(url)
    server_of(parsed).require(parsed, may_create=False)
    with _opened(parsed) as engine:
        return upgrade_schema(server_of(parsed), engine)


def backup_database(url: str, file: Path) -> None:
    """Write a copy of a database that may be in use to a new file, in full or not at all.

    Raises:
        DatabaseError: the file exists or cannot be written, or the server has a tool of its own for that.
    """
    parsed = parse_url(url)
    server_of(parsed).require(parsed, may_create=False)
    if file.exists():
        raise DatabaseError("a backup must be a new file", actual=f"{file}, which exists")
    if not file.absolute().parent.is_dir():
        raise DatabaseError("the folder of a backup must exist", actual=str(file.parent))
    with _opened(parsed) as engine:
        server_of(parsed).backup(engine, file)


@contextmanager
def _opened(url: URL) -> Iterator[sqlalchemy.Engine]:
    engine = make_engine(url)
    try:
        with database_errors(url):
            yield engine
    finally:
        engine.dispose()
