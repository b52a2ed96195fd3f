"""SQLite passes the conformance of a study database, and its files fail clearly."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scheduler_search.errors import DatabaseError
from scheduler_search.storage import StudyDatabase, database_exists
from tests.conformance.store import REDUCTION, StoreConformance, make_definition


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "studies.db"


def url_of(file: Path) -> str:
    return f"sqlite:///{file}"


class TestSqlite(StoreConformance):
    @pytest.fixture
    def url(self, file: Path) -> str:
        return url_of(file)


def refused(url: str, message: str, *, create: bool = True) -> None:
    with pytest.raises(DatabaseError, match=message) as caught:
        StudyDatabase.open(url, create=create)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("studies.db", "must be given as a URL, but got 'studies.db'.*sqlite:///"),
        ("", "must be given as a URL"),
        ("oracle://x/y", "must be SQLite or PostgreSQL, but got oracle"),
        ("sqlite+aiosqlite:///x.db", "must be pysqlite"),
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("sqlite:////nowhere/at/all/x.db", "the folder of a study database must exist, but got /nowhere/at/all"),
        ("sqlite:////proc/studies.db", "must be usable, but got unable to open database file"),
    ],
)
def test_a_url_that_cannot_be_opened_is_refused(url: str, message: str) -> None:
    refused(url, message)


def test_a_missing_file_is_not_created_unasked(file: Path) -> None:
    refused(url_of(file), "the study database must exist", create=False)
    assert not database_exists(url_of(file))
    StudyDatabase.open(url_of(file)).close()
    assert database_exists(url_of(file))


def test_a_folder_is_not_a_database(tmp_path: Path) -> None:
    refused(url_of(tmp_path), "unable to open database file")


def test_a_text_file_is_not_a_database(file: Path) -> None:
    text = "name = 'not a database'\n" * 100
    file.write_text(text)
    refused(url_of(file), "file is not a database")
    assert file.read_text() == text


def test_an_empty_file_becomes_a_database(file: Path) -> None:
    file.touch()
    refused(url_of(file), "must exist, but got an empty database.*database init", create=False)
    assert not database_exists(url_of(file))
    StudyDatabase.open(url_of(file)).close()
    with StudyDatabase.open(url_of(file), create=False) as database:
        assert database.studies() == []


def test_a_foreign_database_is_refused_and_left_alone(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE customers (id INTEGER)")
    refused(url_of(file), "must be empty or written by this program, but got tables customers")
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("customers",)]


def edit_version(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE scheduler_search_version SET version_num = '0099'")


def drop_table(connection: sqlite3.Connection) -> None:
    connection.execute("DROP TABLE chunk_scores")


def drop_version_table(connection: sqlite3.Connection) -> None:
    connection.execute("DROP TABLE scheduler_search_version")


def use_old_version_table(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE scheduler_search_version RENAME COLUMN version_num TO version")


def delete_version(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM scheduler_search_version")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_version, "reads version 0001 of the study database, but got version 0099.*newer one"),
        (drop_table, "must be complete, but got no table chunk_scores"),
        (drop_version_table, "must be complete, but got no table scheduler_search_version"),
        (use_old_version_table, "must be complete, but got the tables of a program that was never released"),
        (delete_version, "must be complete, but got 0 version rows"),
    ],
)
def test_a_newer_or_half_made_database_is_refused(
    file: Path, damage: Callable[[sqlite3.Connection], None], message: str
) -> None:
    StudyDatabase.open(url_of(file)).close()
    with sqlite3.connect(file) as connection:
        damage(connection)
    refused(url_of(file), message)


def test_a_read_only_database_can_be_read_and_not_written(file: Path) -> None:
    with StudyDatabase.open(url_of(file)) as database:
        database.add_study(make_definition())
    with StudyDatabase.open(f"sqlite:///file:{file}?mode=ro&uri=true") as database:
        assert database.study("first").name == "first"
        with pytest.raises(DatabaseError, match="attempt to write a readonly database") as caught:
            database.add_study(make_definition("second"))
    assert "\n" not in str(caught.value)


def test_a_read_only_file_cannot_become_a_study_database(file: Path) -> None:
    file.touch()
    refused(f"sqlite:///file:{file}?mode=ro&uri=true", "attempt to write a readonly database")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused(url_of(tmp_path / "studies.db"), "unable to open database file")


def test_connections_are_durable(file: Path) -> None:
    with StudyDatabase.open(url_of(file)) as database, database._engine.connect() as connection:
        pragmas = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert values == ["wal", 2, 30000, 1]


# Several processes

ADD_CHUNKS = """
import sys
from scheduler_search.storage import StudyDatabase
from tests.conformance.store import REDUCTION
with StudyDatabase.open(sys.argv[1]) as database:
    evaluation = database.evaluation("sha256:key", "search", "sha256:data", REDUCTION, 10_000)
    print("ready", flush=True)
    for chunk in range(int(sys.argv[2])):
        database.add_chunk(evaluation, chunk, [((chunk * 16 + i) % 97) / 97 for i in range(16)])
        print(chunk, flush=True)
"""


def add_chunks(file: Path, chunks: int) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", ADD_CHUNKS, url_of(file), str(chunks)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)


def expected_chunk(chunk: int) -> tuple[float, ...]:
    return tuple(((chunk * 16 + i) % 97) / 97 for i in range(16))


@pytest.mark.slow
def test_processes_that_open_an_empty_database_and_add_the_same_chunks_all_succeed(file: Path) -> None:
    writers = [add_chunks(file, 40) for _ in range(3)]
    outcomes = [writer.communicate(timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], outcomes
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT chunk) FROM chunk_scores").fetchone() == (640, 40)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.1])
def test_a_killed_writer_loses_no_chunk_that_it_was_told_is_recorded(file: Path, seconds: float) -> None:
    writer = add_chunks(file, 10_000)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    time.sleep(seconds)
    writer.send_signal(signal.SIGKILL)
    told = [int(line) for line in writer.communicate()[0].splitlines() if line]
    assert writer.returncode == -signal.SIGKILL
    with StudyDatabase.open(url_of(file)) as database:
        evaluation = database.evaluation("sha256:key", "search", "sha256:data", REDUCTION, 10_000)
        recorded = database.chunk_scores(evaluation)
        assert len(recorded) in (len(told), len(told) + 1)
        assert recorded == {chunk: expected_chunk(chunk) for chunk in range(len(recorded))}
        database.add_chunk(evaluation, len(recorded), expected_chunk(len(recorded)))
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
