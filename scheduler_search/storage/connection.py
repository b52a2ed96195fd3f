"""An open study database: its connections, its schema, and the two kinds of transaction.

Knows: when the schema is made, and that reading never waits for writing. Does not know: what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

import sqlalchemy
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from scheduler_search.errors import DatabaseError
from scheduler_search.storage.engine import (
    READ_ONLY,
    database_errors,
    make_engine,
    parse_url,
    require_file,
    shown,
    use_write_ahead_log,
)
from scheduler_search.storage.schema import create_schema, is_ready


class Connection:
    """Made with ``open``; a context manager that closes it."""

    def __init__(self, url: URL, engine: sqlalchemy.Engine) -> None:
        self.url = url
        self._engine = engine
        self._reader = engine.execution_options(**{READ_ONLY: True})
        self._resources = ExitStack()
        self._resources.callback(engine.dispose)

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> Self:
        """Open the database at ``url``, with our schema created where there is none.

        Args:
            create: whether a missing file may be created.

        Raises:
            DatabaseError: bad URL, unwritable folder, not a database, of another program, newer, or left half made.
        """
        parsed = parse_url(url)
        require_file(parsed, may_create=create)
        database = cls(parsed, make_engine(parsed))
        try:
            with database_errors(parsed):
                database._prepare()
        except DatabaseError:
            database.close()
            raise
        return database

    def _prepare(self) -> None:
        place = shown(self.url)
        with self._reader.begin() as connection:
            if is_ready(connection, place):
                return
        use_write_ahead_log(self._engine)
        with self._engine.begin() as connection:
            # Asked again under the write lock: another process may have made the schema in the meantime.
            if not is_ready(connection, place):
                create_schema(connection)

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

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with database_errors(self.url), Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with database_errors(self.url), Session(self._reader) as session, session.begin():
            yield session
