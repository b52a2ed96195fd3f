"""Studies in an SQLite file.

Knows: files, pragmas, and how SQLite begins a transaction. Does not know: any table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, Double, cast, literal_column
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from scheduler_search.errors import DatabaseError
from scheduler_search.storage.server import BUSY_SECONDS, READ_ONLY, Server, shown

_EXAMPLE = "for example sqlite:///scheduler-search.db"


class Sqlite(Server):
    """An SQLite file: write-ahead log, synchronous FULL, foreign keys, one writer at a time."""

    name = "SQLite"

    def checked(self, url: URL) -> URL:
        """As it is, if it names a file."""
        if url.drivername not in ("sqlite", "sqlite+pysqlite"):
            raise DatabaseError("the SQLite driver must be pysqlite", actual=url.drivername, remedy=_EXAMPLE)
        if url.database in (None, "", ":memory:"):
            rule = "a study database must be a file, since Optuna opens it too"
            raise DatabaseError(rule, actual=url.render_as_string(), remedy=_EXAMPLE)
        return url

    def exists(self, url: URL) -> bool:
        """Whether there is a file."""
        database = url.database or ""
        return database.startswith("file:") or Path(database).exists()

    def require(self, url: URL, *, may_create: bool) -> None:
        """Refuse a file whose folder is missing, and a missing file unless it may be created."""
        path = Path(url.database or "")
        if str(path).startswith("file:"):
            return
        if not path.absolute().parent.is_dir():
            raise DatabaseError("the folder of a study database must exist", actual=str(path.parent), place=shown(url))
        if not may_create and not path.exists():
            remedy = "give the right URL, or launch a study to create it"
            raise DatabaseError("the study database must exist", actual="no such file", place=shown(url), remedy=remedy)

    def engine_options(self) -> dict[str, Any]:
        """Wait for a lock rather than fail, from the first statement on."""
        return {"connect_args": {"timeout": BUSY_SECONDS}}

    def configure(self, connection: Any, record: object) -> None:  # noqa: ARG002
        """Wait rather than fail, survive a power cut (synchronous FULL), enforce foreign keys."""
        for pragma in (f"busy_timeout={BUSY_SECONDS * 1000}", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    def begin(self, connection: sqlalchemy.Connection) -> None:
        """Begin here and not where the driver would."""
        # The driver itself would begin at the first INSERT, deferred, and never around CREATE TABLE.
        # A deferred transaction that reads first and writes later fails at once when another process wrote in between.
        read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    def reader(self, engine: sqlalchemy.Engine) -> sqlalchemy.Engine:
        """The write-ahead log lets readers see one moment without a lock."""
        return engine.execution_options(**{READ_ONLY: True})

    def prepare(self, engine: sqlalchemy.Engine) -> None:
        """Let readers go on while another process writes (WAL), unless the file cannot be written anyway.

        The file remembers it. A pragma of every connection would already rewrite the header of a database that is not
        ours.
        """
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            try:
                driver.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorname != "SQLITE_READONLY":
                    place = shown(engine.url)
                    raise DatabaseError("the study database must be usable", actual=str(error), place=place) from error

    @contextmanager
    def migrating(self, engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
        """Foreign keys are off meanwhile and checked at the end.

        SQLite changes a table by making a new one and dropping the old one, which would take along every row that
        refers to it.
        """
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            driver.execute("PRAGMA foreign_keys=OFF")
            try:
                with connection.begin():
                    yield connection
                    _require_references(connection)
            finally:
                driver.execute("PRAGMA foreign_keys=ON")

    def alone(self, engine: sqlalchemy.Engine) -> AbstractContextManager[None]:  # noqa: ARG002
        """Not possible here."""
        # The only lock there is would stop Optuna too.
        return nullcontext()

    def clock(self) -> ColumnElement[float]:
        """To the millisecond, like SQLite's ``now``."""
        return cast(literal_column("(julianday('now') - 2440587.5) * 86400.0"), Double)

    def version(self, connection: sqlalchemy.Connection) -> str:
        """For example ``SQLite 3.46.1``."""
        return f"SQLite {connection.exec_driver_sql('SELECT sqlite_version()').scalar_one()}"

    def lost(self, error: DBAPIError) -> bool:  # noqa: ARG002
        """There is no server that could go away."""
        return False

    def backup(self, engine: sqlalchemy.Engine, file: Path) -> None:
        """Copy with SQLite's backup API: readers and writers go on, and the copy is of one moment."""
        unfinished = file.with_name(file.name + ".unfinished")
        try:
            with engine.connect() as live, closing(sqlite3.connect(unfinished)) as copy:
                source = live.connection.driver_connection
                assert isinstance(source, sqlite3.Connection)
                source.backup(copy)
            unfinished.replace(file)
        except (sqlite3.Error, OSError) as error:
            raise DatabaseError("a backup must be written in full", actual=str(error), place=str(file)) from error
        finally:
            unfinished.unlink(missing_ok=True)


def _require_references(connection: sqlalchemy.Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    if broken is not None:
        raise DatabaseError(
            "every row of the study database must refer to rows that are there",
            actual=f"row {broken[1]} of table {broken[0]} without its row of {broken[2]}",
            place=shown(connection.engine.url),
            remedy="the database was edited; restore it from a backup",
        )
