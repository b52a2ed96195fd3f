"""SQLite passes the conformance of a study database, and its files fail clearly."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scheduler_search.errors import DatabaseError
from scheduler_search.storage import StudyDatabase, backup_database, database_exists
from tests.conformance.store import REDUCTION, StoreConformance, make_definition
from tests.conformance.whole import WholeConformance, expected_chunk


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "studies.db"


def url_of(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with our tables; copying it takes a tenth of the time of making one."""
    file = tmp_path_factory.mktemp("made") / "studies.db"
    StudyDatabase.open(url_of(file)).close()
    return file


class TestSqlite(StoreConformance):
    @pytest.fixture
    def url(self, made: Path, file: Path) -> str:
        shutil.copy(made, file)
        return url_of(file)


class TestSqliteAsAWhole(WholeConformance):
    @pytest.fixture
    def empty_url(self, file: Path) -> str:
        return url_of(file)

    @pytest.fixture
    def other_empty_url(self, tmp_path: Path) -> str:
        return url_of(tmp_path / "other.db")


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


# Backups


@pytest.mark.slow
def test_a_backup_is_of_one_moment_while_others_write(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with StudyDatabase.open(url_of(file)) as database:
        evaluation = database.evaluation("sha256:key", "search", "sha256:data", REDUCTION, 400)
        with ThreadPoolExecutor() as threads:
            writing = threads.submit(
                lambda: [database.add_chunk(evaluation, chunk, expected_chunk(chunk)) for chunk in range(400)]
            )
            while len(database.chunk_scores(evaluation)) < 20:
                assert not writing.done()
            backup_database(url_of(file), copy)
            assert not writing.done()
            writing.result()
    with StudyDatabase.open(url_of(copy), create=False) as database:
        recorded = database.chunk_scores(evaluation)
        assert 20 <= len(recorded) < 400
        assert recorded == {chunk: expected_chunk(chunk) for chunk in range(len(recorded))}
        database.add_study(make_definition())
    test_connections_are_durable(copy)


def test_a_backup_is_one_file_and_never_replaces_one(file: Path, tmp_path: Path) -> None:
    StudyDatabase.open(url_of(file)).close()
    folder = tmp_path / "copies"
    with pytest.raises(DatabaseError, match="the folder of a backup must exist"):
        backup_database(url_of(file), folder / "copy.db")
    folder.mkdir()
    backup_database(url_of(file), folder / "copy.db")
    assert [path.name for path in folder.iterdir()] == ["copy.db"]
    with pytest.raises(DatabaseError, match=r"a backup must be a new file, but got .*copy.db, which exists"):
        backup_database(url_of(file), folder / "copy.db")
    with pytest.raises(DatabaseError, match="no such file"):
        backup_database(url_of(tmp_path / "none.db"), folder / "none.db")


def test_a_backup_that_fails_leaves_nothing(file: Path) -> None:
    StudyDatabase.open(url_of(file)).close()
    with pytest.raises(DatabaseError, match="a backup must be written in full"):
        backup_database(url_of(file), Path("/proc/copy.db"))
    file.write_bytes(b"damaged" + file.read_bytes()[7:])
    copy = file.with_name("copy.db")
    with pytest.raises(DatabaseError, match="file is not a database"):
        backup_database(url_of(file), copy)
    assert not list(file.parent.glob("copy*"))
