"""An open study database: its connections, its schema, and the two kinds of transaction.

Knows: when the schema is made, that reading never waits for writing, and that a lost connection is made again. Does not
know: what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self, TypeVar

import sqlalchemy
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from scheduler_search.errors import DatabaseError
from scheduler_search.storage.engine import database_errors, make_engine, parse_url, server_of, shown
from scheduler_search.storage.retries import retry
from scheduler_search.storage.schema import is_ready, make_schema, missing_schema

RECONNECT_SECONDS = 60.0

_R = TypeVar("_R")


class Connection:
    """Made with ``open``; a context manager that closes it."""

    def __init__(self, url: URL, engine: sqlalchemy.Engine, reconnect_seconds: float = RECONNECT_SECONDS) -> None:
        self.url = url
        self._server = server_of(url)
        self._engine = engine
        self._reader = self._server.reader(engine)
        self._reconnect_seconds = reconnect_seconds
        self._resources = ExitStack()
        self._resources.callback(engine.dispose)

    @classmethod
    def open(cls, url: str, *, create: bool = True, reconnect_seconds: float = RECONNECT_SECONDS) -> Self:
        """Open the database at ``url``, with our schema created where the database is empty.

        Args:
            create: whether a missing file, and our schema in an empty database, may be created.
            reconnect_seconds: how long a method waits for a server that went away after this.

        Raises:
            DatabaseError: bad URL, unreachable server, unwritable folder, not a database, of another program, older,
                newer, or left half made.
        """
        parsed = parse_url(url)
        server_of(parsed).require(parsed, may_create=create)
        database = cls(parsed, make_engine(parsed), reconnect_seconds)
        try:
            with database_errors(parsed):
                database._prepare(may_create=create)
        except DatabaseError:
            database.close()
            raise
        return database

    def _prepare(self, *, may_create: bool) -> None:
        place = shown(self.url)
        with self._reader.begin() as connection:
            ready = is_ready(connection, place)
        if not ready and not may_create:
            raise missing_schema(place)
        self._server.prepare(self._engine)
        if not ready:
            make_schema(self._server, self._engine)

    def close(self) -> None:
        """Close all connections."""
        self._resources.close()

    def close_later(self, release: Callable[[], None]) -> None:
        """Call ``release`` when the database is closed, before its own connections are."""
        self._resources.callback(release)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def retrying(self, operation: Callable[[], _R]) -> _R:
        """The result of ``operation``, done again while the server is away; it must bear being done twice.

        Raises:
            DatabaseError: the server did not come back within ``reconnect_seconds``.
        """
        return retry(operation, self._reconnect_seconds)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from making tables meanwhile, where that does not stop Optuna from making its own."""
        with self._server.alone(self._engine):
            yield

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with database_errors(self.url), Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with database_errors(self.url), Session(self._reader) as session, session.begin():
            yield session
