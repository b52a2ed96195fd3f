"""What a database server must offer to hold studies, and how its failures are worded.

Knows: which promises the rest of the package builds on. Does not know: any server, or any table.

The promises: a transaction that writes holds the database's one write lock from its beginning, so a method may read and
then write what follows from it; one that reads sees one moment of the database and waits for nobody; what is committed
survives a power cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from scheduler_search.errors import DatabaseError

READ_ONLY = "scheduler_search_read_only"
BUSY_SECONDS = 30


class ConnectionLostError(DatabaseError):
    """The server went away, or does not accept connections; it may come back."""


class Server(ABC):
    """One kind of database server."""

    name: str

    @abstractmethod
    def checked(self, url: URL) -> URL:
        """The URL as engines take it, with the driver's name; DatabaseError where it cannot name a study database."""

    @abstractmethod
    def exists(self, url: URL) -> bool:
        """Whether there is something to connect to; opens nothing."""

    @abstractmethod
    def require(self, url: URL, *, may_create: bool) -> None:
        """DatabaseError where a connection could not succeed, or would create what may not be created."""

    @abstractmethod
    def engine_options(self) -> dict[str, Any]:
        """Arguments of ``sqlalchemy.create_engine``, for our engine and for Optuna's."""

    @abstractmethod
    def configure(self, connection: Any, record: object) -> None:
        """Set up a new connection of the driver: waiting times, durability, foreign keys. Listens to ``connect``."""

    @abstractmethod
    def begin(self, connection: sqlalchemy.Connection) -> None:
        """Begin a transaction, with the write lock unless it is READ_ONLY. Listens to ``begin``."""

    @abstractmethod
    def reader(self, engine: sqlalchemy.Engine) -> sqlalchemy.Engine:
        """The same engine for transactions that only read."""

    @abstractmethod
    def prepare(self, engine: sqlalchemy.Engine) -> None:
        """Set what a database remembers, in one that is ours or is to become ours."""

    @abstractmethod
    def migrating(self, engine: sqlalchemy.Engine) -> AbstractContextManager[sqlalchemy.Connection]:
        """A writing transaction in which tables may be rebuilt; committed at its end."""

    @abstractmethod
    def alone(self, engine: sqlalchemy.Engine) -> AbstractContextManager[None]:
        """Keep other processes from making tables meanwhile, where that is possible without stopping Optuna."""

    @abstractmethod
    def clock(self) -> ColumnElement[float]:
        """Seconds since 1970 of the database's clock, at the moment at which it is asked."""

    @abstractmethod
    def version(self, connection: sqlalchemy.Connection) -> str:
        """Name and version of the server."""

    @abstractmethod
    def lost(self, error: DBAPIError) -> bool:
        """Whether the error says that the server went away, and not that it refused something."""

    @abstractmethod
    def backup(self, engine: sqlalchemy.Engine, file: Path) -> None:
        """Write a consistent copy of the live database to ``file``; DatabaseError where another program does that."""


def shown(url: URL) -> str:
    """The URL as errors print it: without a password."""
    return url.render_as_string(hide_password=True)


@contextmanager
def driver_errors(server: Server, url: URL) -> Iterator[None]:
    """Turn what the driver raises (disk full, locked, read-only, not a database) into one DatabaseError."""
    try:
        yield
    except DBAPIError as error:
        reason = str(error.orig).splitlines()[0]
        if server.lost(error):
            raise ConnectionLostError(
                "the study database must be reachable", actual=reason, place=shown(url)
            ) from error
        full = "disk is full" in reason or "No space left" in reason
        remedy = "free some space, then `scheduler-search resume` the study; nothing is lost" if full else None
        rule = "the study database must be usable"
        raise DatabaseError(rule, actual=reason, place=shown(url), remedy=remedy) from error
