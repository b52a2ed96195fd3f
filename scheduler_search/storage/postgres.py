"""Studies in a PostgreSQL database, through psycopg 3.

Knows: connection settings, the write lock, and which errors mean that the server went away. Does not know: any table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, Double, cast, func
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from scheduler_search.errors import DatabaseError
from scheduler_search.storage.server import BUSY_SECONDS, READ_ONLY, Server

_EXAMPLE = "for example postgresql://user@host/database"
# Eight letters as a 64-bit number, so that no other program in the same database takes the same lock.
_WRITE_LOCK = int.from_bytes(b"schedule", "big")

# A process that is stopped within a transaction holds the write lock: others must get it before they give up.
_IDLE_IN_TRANSACTION_SECONDS = 10

# Connection exceptions, and a server that is being shut down, has crashed, or is starting.
_LOST_STATES = ("08", "57P01", "57P02", "57P03")

# A network that swallows packets is noticed within half a minute.
_CONNECTING: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
    "application_name": "scheduler-search",
}


class Postgres(Server):
    """A PostgreSQL database: an advisory lock for writers, one snapshot for readers."""

    name = "PostgreSQL"

    def checked(self, url: URL) -> URL:
        """With psycopg 3 as the driver, whether it was named or not."""
        if url.drivername not in ("postgresql", "postgresql+psycopg"):
            raise DatabaseError("the PostgreSQL driver must be psycopg", actual=url.drivername, remedy=_EXAMPLE)
        if not url.database:
            raise DatabaseError("a URL must name the database on the server", remedy=_EXAMPLE)
        # Without a driver's name, other programs and other versions of SQLAlchemy would take psycopg2.
        return url.set(drivername="postgresql+psycopg")

    def exists(self, url: URL) -> bool:  # noqa: ARG002
        """A server is always there to be asked."""
        return True

    def require(self, url: URL, *, may_create: bool) -> None:
        """Nothing: databases are created by the server's administrator, and connecting says the rest."""

    def engine_options(self) -> dict[str, Any]:
        """Every statement of a writer sees what is committed by then."""
        return {"connect_args": dict(_CONNECTING), "isolation_level": "READ COMMITTED"}

    def configure(self, connection: Any, record: object) -> None:  # noqa: ARG002
        """Wait for locks as long as SQLite does, never hold one while doing nothing, and survive a crash."""
        connection.execute(
            "SELECT set_config('lock_timeout', %s, false),"
            # Numbers in as many digits as they need to come back bit for bit.
            " set_config('extra_float_digits', '1', false),"
            # A server that answers before it has written would forget what it answered when it crashes.
            " set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), false),"
            " set_config('idle_in_transaction_session_timeout', %s, false)",
            (f"{BUSY_SECONDS}s", f"{_IDLE_IN_TRANSACTION_SECONDS}s"),
        )
        connection.commit()

    def begin(self, connection: sqlalchemy.Connection) -> None:
        """Wait for the advisory lock of writers, which the end of the transaction releases."""
        # The driver has begun already. What this transaction reads after the lock is what the one before it committed,
        # since at READ COMMITTED every statement sees its own moment.
        if not connection.get_execution_options().get(READ_ONLY, False):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")

    def reader(self, engine: sqlalchemy.Engine) -> sqlalchemy.Engine:
        """All statements of a reader see the same moment."""
        options = {READ_ONLY: True, "isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        return engine.execution_options(**options)

    def prepare(self, engine: sqlalchemy.Engine) -> None:
        """Nothing."""

    def migrating(self, engine: sqlalchemy.Engine) -> AbstractContextManager[sqlalchemy.Connection]:
        """A writing transaction like any other: PostgreSQL changes tables in place."""
        return engine.begin()

    @contextmanager
    def alone(self, engine: sqlalchemy.Engine) -> Iterator[None]:
        """Hold the lock of writers."""
        # Optuna takes no lock of ours, so it may be held while Optuna makes its tables on another connection. Not
        # within a transaction, which would be idle meanwhile.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT", **{READ_ONLY: True}) as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({_WRITE_LOCK})")
            try:
                yield
            finally:
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_WRITE_LOCK})")

    def clock(self) -> ColumnElement[float]:
        """To the microsecond."""
        # Not now(), which is when the transaction began: it may have waited for the write lock since.
        return cast(func.extract("epoch", func.clock_timestamp()), Double)

    def version(self, connection: sqlalchemy.Connection) -> str:
        """For example ``PostgreSQL 15.18``."""
        return f"PostgreSQL {str(connection.exec_driver_sql('SHOW server_version').scalar_one()).split()[0]}"

    def lost(self, error: DBAPIError) -> bool:
        """Whether the connection broke, could not be made, or was closed by a server that stops."""
        if error.connection_invalidated:
            return True
        state = getattr(error.orig, "sqlstate", None)
        if state is None:
            # Without a state, the error is not an answer of the server: the connection could not be made.
            return isinstance(error, sqlalchemy.exc.OperationalError)
        return str(state).startswith(_LOST_STATES)

    def backup(self, engine: sqlalchemy.Engine, file: Path) -> None:
        """Always refused, in favour of the tool that the server comes with."""
        # libpq takes the URL without SQLAlchemy's name of the driver; the password comes from PGPASSWORD or ~/.pgpass.
        of = engine.url
        plain = URL.create("postgresql", of.username, None, of.host, of.port, of.database, of.query)
        raise DatabaseError(
            "a PostgreSQL database is backed up by pg_dump",
            remedy=f"run: pg_dump --format=custom --file={file} '{plain.render_as_string()}'",
        )
