"""Opening a database by URL.

Knows: which server a URL means. Does not know: how servers differ (``sqlite``, ``postgres``), or any table.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from scheduler_search.errors import DatabaseError
from scheduler_search.storage.postgres import Postgres
from scheduler_search.storage.server import BUSY_SECONDS, READ_ONLY, Server, driver_errors, shown
from scheduler_search.storage.sqlite import Sqlite

__all__ = [
    "BUSY_SECONDS",
    "READ_ONLY",
    "absolute_url",
    "database_errors",
    "is_file",
    "make_engine",
    "parse_url",
    "server_of",
    "shown",
]

_EXAMPLE = "for example sqlite:///scheduler-search.db or postgresql://user@host/database"


def parse_url(url: str) -> URL:
    """The URL of a study database, or DatabaseError where it cannot name one."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseError("a study database must be given as a URL", actual=repr(url), remedy=_EXAMPLE) from error
    return server_of(parsed).checked(parsed)


def is_file(url: str) -> bool:
    """Whether a database is a file, and so at hand on one machine only."""
    return isinstance(server_of(parse_url(url)), Sqlite)


def absolute_url(url: str) -> str:
    """A URL, with its password, that means the same database in another folder of the machine."""
    parsed = parse_url(url)
    if is_file(url) and parsed.database:
        parsed = parsed.set(database=str(Path(parsed.database).absolute()))
    return parsed.render_as_string(hide_password=False)


def server_of(url: URL) -> Server:
    """The server that a URL means; DatabaseError for one that we do not support."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        return Sqlite()
    if backend == "postgresql":
        return Postgres()
    raise DatabaseError("a study database must be SQLite or PostgreSQL", actual=backend, remedy=_EXAMPLE)


def make_engine(url: URL) -> sqlalchemy.Engine:
    """An engine whose connections are durable, wait for each other and enforce foreign keys. Opens nothing yet."""
    server = server_of(url)
    engine = sqlalchemy.create_engine(url, **server.engine_options())
    event.listen(engine, "connect", server.configure)
    event.listen(engine, "begin", server.begin)
    return engine


def database_errors(url: URL) -> AbstractContextManager[None]:
    """Turn what the driver raises into DatabaseError; ConnectionLostError where the server went away."""
    return driver_errors(server_of(url), url)
