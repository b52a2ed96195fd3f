"""Opening a database by URL: all that differs between database servers is here.

Knows: URLs, connections, pragmas, and how a transaction begins. Does not know: any table.

What the rest of the package relies on, and every server must be given here: a transaction that writes holds the
database's one write lock from its beginning, so a method may read and then write what follows from it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from scheduler_search.errors import DatabaseError

READ_ONLY = "scheduler_search_read_only"
BUSY_SECONDS = 30

_EXAMPLE = "for example sqlite:///scheduler-search.db"


def parse_url(url: str) -> URL:
    """The URL of a study database, or DatabaseError where it cannot name one."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseError("a study database must be given as a URL", actual=repr(url), remedy=_EXAMPLE) from error
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseError("a study database must be SQLite", actual=parsed.get_backend_name(), remedy=_EXAMPLE)
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise DatabaseError("the SQLite driver must be pysqlite", actual=parsed.drivername, remedy=_EXAMPLE)
    if parsed.database in (None, "", ":memory:"):
        raise DatabaseError("a study database must be a file, since Optuna opens it too", actual=url, remedy=_EXAMPLE)
    return parsed


def shown(url: URL) -> str:
    """The URL as errors print it: without a password."""
    return url.render_as_string(hide_password=True)


def require_file(url: URL, *, may_create: bool) -> None:
    """Refuse a file whose folder is missing, and a missing file unless it may be created."""
    path = Path(url.database or "")
    if str(path).startswith("file:"):
        return
    if not path.absolute().parent.is_dir():
        raise DatabaseError("the folder of a study database must exist", actual=str(path.parent), place=shown(url))
    if not may_create and not path.exists():
        remedy = "give the right URL, or launch a study to create it"
        raise DatabaseError("the study database must exist", actual="no such file", place=shown(url), remedy=remedy)


def database_exists(url: str) -> bool:
    """Whether there is a file at ``url``; DatabaseError where the URL cannot name a study database."""
    database = parse_url(url).database or ""
    return database.startswith("file:") or Path(database).exists()


def make_engine(url: URL) -> sqlalchemy.Engine:
    """An engine whose connections are durable, wait for each other and enforce foreign keys. Opens nothing yet."""
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    """Wait rather than fail, survive a power cut (synchronous FULL), enforce foreign keys."""
    for pragma in (f"busy_timeout={BUSY_SECONDS * 1000}", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def use_write_ahead_log(engine: sqlalchemy.Engine) -> None:
    """Let readers go on while another process writes (WAL).

    The file remembers it, so it is asked for once, when our schema is made: a pragma of every connection would already
    rewrite the header of a database that is not ours.
    """
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode=WAL")
    except sqlite3.Error as error:
        raise DatabaseError("the study database must be usable", actual=str(error), place=shown(engine.url)) from error
    finally:
        connection.close()


@contextmanager
def database_errors(url: URL) -> Iterator[None]:
    """Turn what the driver raises (disk full, locked, read-only, not a database) into one DatabaseError."""
    try:
        yield
    except DBAPIError as error:
        reason = str(error.orig).splitlines()[0]
        raise DatabaseError("the study database must be usable", actual=reason, place=shown(url)) from error


def _begin(connection: sqlalchemy.Connection) -> None:
    # The driver itself would begin at the first INSERT, deferred, and never around CREATE TABLE.
    # A deferred transaction that reads first and writes later fails at once when another process wrote in between.
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
