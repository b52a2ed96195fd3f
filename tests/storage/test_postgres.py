"""PostgreSQL passes the conformance of a study database, and its failures are clear."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scheduler_search.errors import DatabaseError
from scheduler_search.storage import StudyDatabase, backup_database, database_exists, optuna_storage
from tests.conformance.store import StoreConformance, make_definition
from tests.conformance.whole import WholeConformance
from tests.postgres import PostgresServer, find_programs

pytestmark = pytest.mark.slow


class TestPostgres(StoreConformance):
    @pytest.fixture
    def url(self, postgres_studies_url: str) -> str:
        return postgres_studies_url


class TestPostgresAsAWhole(WholeConformance):
    @pytest.fixture
    def empty_url(self, postgres_url: str) -> str:
        return postgres_url

    @pytest.fixture
    def other_empty_url(self, postgres: PostgresServer) -> str:
        return postgres.url(postgres.create_database())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+psycopg2://host/db", r"driver must be psycopg, but got postgresql\+psycopg2"),
        ("postgresql://user@host", "must name the database on the server"),
        ("postgresql://user:secret@127.0.0.1:1/db", "must be reachable, but got .*Connection refused"),
        ("postgresql://user:secret@/db?host=/nowhere", "must be reachable, but got .*No such file or directory"),
    ],
)
def test_a_url_that_cannot_be_opened_is_refused(url: str, message: str) -> None:
    for attempt in (StudyDatabase.open, database_exists):
        with pytest.raises(DatabaseError, match=message) as caught:
            attempt(url)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_database_is_named(postgres: PostgresServer) -> None:
    with pytest.raises(DatabaseError, match='database "nowhere" does not exist'):
        StudyDatabase.open(postgres.url("nowhere"))


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_both_spellings_of_the_url_are_the_same(postgres_url: str, scheme: str) -> None:
    url = postgres_url.replace("postgresql+psycopg", scheme)
    with StudyDatabase.open(url) as database:
        assert database.url.drivername == "postgresql+psycopg"
        assert optuna_storage(database).get_all_studies() == []


def test_connections_never_wait_or_hold_a_lock_for_ever(postgres_studies_url: str) -> None:
    settings = ("lock_timeout", "idle_in_transaction_session_timeout", "extra_float_digits", "synchronous_commit")
    with StudyDatabase.open(postgres_studies_url) as database:
        for engine in (database._engine, optuna_storage(database).engine):
            with engine.connect() as connection:
                values = [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in settings]
                assert values == ["30s", "10s", "1", "on"]


def test_a_backup_is_the_work_of_pg_dump(postgres: PostgresServer, postgres_url: str, tmp_path: Path) -> None:
    with StudyDatabase.open(postgres_url) as database:
        study = database.add_study(make_definition())
    file = tmp_path / "studies.dump"
    with pytest.raises(DatabaseError, match=r"run: pg_dump --format=custom --file=.*studies.dump") as told:
        backup_database(postgres_url, file)
    command = str(told.value).partition("run: ")[2]
    subprocess.run(f"{find_programs()}/{command}", shell=True, check=True)
    restored = postgres.create_database()
    plain = postgres.url(restored).replace("+psycopg", "")
    subprocess.run([find_programs() / "pg_restore", f"--dbname={plain}", file], check=True)
    with StudyDatabase.open(postgres.url(restored)) as database:
        assert database.studies() == [study]
