"""What must hold of a study database as a whole on every server: how it comes to be, is upgraded, and is shared.

A backend inherits ``WholeConformance`` and overrides two fixtures with URLs of different empty databases.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select

from scheduler_search.errors import DatabaseError
from scheduler_search.storage import (
    StudyDatabase,
    database_exists,
    migrations,
    optuna_storage,
    schema,
    upgrade_database,
)
from scheduler_search.storage.engine import make_engine, parse_url, server_of
from scheduler_search.storage.schema import OPTUNA_TABLES, VERSION_TABLE, VERSIONS
from scheduler_search.storage.tables import StudyRow, Table
from scheduler_search.study.states import StudyState
from tests.conformance.store import FIGURES, RATES, REDUCTION, make_definition

ROOT = Path(__file__).parents[2]
SCORES = (0.1 + 0.2, 1 / 3, 5e-324, 1.0, 2 / 3 - 1e-16)

ADD_CHUNKS = """
import sys
from scheduler_search.storage import StudyDatabase
from tests.conformance.store import REDUCTION
from tests.conformance.whole import expected_chunk
with StudyDatabase.open(sys.argv[1]) as database:
    evaluation = database.evaluation("sha256:key", "search", "sha256:data", REDUCTION, 10_000)
    print("ready", flush=True)
    for chunk in range(int(sys.argv[2])):
        database.add_chunk(evaluation, chunk, expected_chunk(chunk))
        print(chunk, flush=True)
"""

OPEN_BOTH = """
import sys
from scheduler_search.storage import StudyDatabase, optuna_storage
import optuna
sys.stdin.readline()
with StudyDatabase.open(sys.argv[1]) as database:
    optuna_storage(database)
"""

NEXT_VERSION = """
import sqlalchemy as sa
from alembic import op
revision = "0002"
down_revision = "0001"
def upgrade():
    with op.batch_alter_table("search_studies") as table:
        table.add_column(sa.Column("colour", sa.String(10), nullable=False, server_default="red"))
        table.alter_column("error", new_column_name="fault")
        table.drop_column("traceback")
"""


class WholeConformance:
    @pytest.fixture
    def empty_url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def other_empty_url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def connection(self, empty_url: str) -> Iterator[sqlalchemy.Connection]:
        """A connection that commits each statement, to a database with our tables."""
        StudyDatabase.open(empty_url).close()
        engine = sqlalchemy.create_engine(parse_url(empty_url), isolation_level="AUTOCOMMIT")
        with engine.connect() as opened:
            yield opened
        engine.dispose()

    # How it comes to be

    def test_a_made_schema_is_the_one_that_the_models_describe(self, empty_url: str, other_empty_url: str) -> None:
        StudyDatabase.open(empty_url).close()
        made, described = make_engine(parse_url(empty_url)), make_engine(parse_url(other_empty_url))
        with described.begin() as connection:
            Table.metadata.create_all(connection)
        with made.connect() as connection, described.connect() as other:
            options = {
                "compare_type": True,
                "compare_server_default": True,
                "version_table": VERSION_TABLE,
            }
            assert compare_metadata(MigrationContext.configure(connection, opts=options), Table.metadata) == []
            # What Alembic does not compare.
            assert _constraints(connection) == _constraints(other)
        made.dispose()
        described.dispose()

    def test_nothing_is_made_unasked(self, empty_url: str) -> None:
        assert not database_exists(empty_url)
        with pytest.raises(DatabaseError, match="the study database must exist"):
            StudyDatabase.open(empty_url, create=False)
        with pytest.raises(DatabaseError, match="the study database must exist"):
            upgrade_database(empty_url)
        assert not database_exists(empty_url)
        StudyDatabase.open(empty_url).close()
        assert database_exists(empty_url)
        StudyDatabase.open(empty_url, create=False).close()

    def test_a_database_with_optunas_tables_only_is_completed(self, empty_url: str) -> None:
        storage = optuna.storages.RDBStorage(parse_url(empty_url).render_as_string(hide_password=False))
        storage.remove_session()
        storage.engine.dispose()
        with StudyDatabase.open(empty_url) as database:
            assert database.studies() == []

    @pytest.mark.slow
    def test_processes_that_open_an_empty_database_at_once_all_succeed(self, empty_url: str) -> None:
        openers = [_python(OPEN_BOTH, empty_url) for _ in range(3)]
        for opener in openers:
            assert opener.stdin is not None
            opener.stdin.write("\n")
            opener.stdin.flush()
        faults = [opener.communicate(timeout=120)[1] for opener in openers]
        assert [opener.returncode for opener in openers] == [0, 0, 0], faults

    # What is refused

    def test_a_foreign_database_is_refused_and_left_alone(self, empty_url: str) -> None:
        engine = make_engine(parse_url(empty_url))
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE customers (id INTEGER)")
        _refused(empty_url, "must be empty or written by this program, but got tables customers")
        with engine.begin() as connection:
            assert inspect(connection).get_table_names() == ["customers"]
        engine.dispose()

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (
                f"UPDATE {VERSION_TABLE} SET version_num = '0099'",
                f"reads version {VERSIONS[-1]} of the study database, but got version 0099.*newer one",
            ),
            ("DROP TABLE chunk_scores", "must be complete, but got no table chunk_scores"),
            (f"DROP TABLE {VERSION_TABLE}", f"must be complete, but got no table {VERSION_TABLE}"),
            (f"DELETE FROM {VERSION_TABLE}", "must be complete, but got 0 version rows"),
            (
                f"ALTER TABLE {VERSION_TABLE} RENAME COLUMN version_num TO version",
                "must be complete, but got the tables of a program that was never released",
            ),
        ],
    )
    def test_a_newer_or_half_made_database_is_refused(
        self, connection: sqlalchemy.Connection, empty_url: str, damage: str, message: str
    ) -> None:
        connection.exec_driver_sql(damage)
        _refused(empty_url, message)
        with pytest.raises(DatabaseError, match=message):
            upgrade_database(empty_url)

    def test_tables_of_another_optuna_are_refused(self, connection: sqlalchemy.Connection, empty_url: str) -> None:
        with StudyDatabase.open(empty_url) as database:
            optuna_storage(database)
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v9.9.9.a'")
        with StudyDatabase.open(empty_url) as database, pytest.raises(DatabaseError, match="of the installed version"):
            optuna_storage(database)

    # Versions

    def test_an_older_database_is_upgraded_on_request_and_keeps_everything(
        self, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with StudyDatabase.open(empty_url) as database:
            _fill(database)
            before = database.overview().rows
            optuna_storage(database)
        assert upgrade_database(empty_url) == (VERSIONS[-1], VERSIONS[-1])
        monkeypatch.setattr(schema, "VERSIONS", (*VERSIONS, "0002"))
        monkeypatch.setattr(migrations, "FOLDER", _with_next_version(tmp_path))
        _refused(empty_url, "must be 0002, but got the older 0001.*database upgrade")
        assert upgrade_database(empty_url) == ("0001", "0002")
        # The models are those of 0001, so only rows are looked at.
        engine = make_engine(parse_url(empty_url))
        with engine.begin() as connection:
            for table, rows in before.items():
                assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one() == rows, table
            assert connection.exec_driver_sql("SELECT colour, fault FROM search_studies").all() == [("red", "a fault")]
            assert set(inspect(connection).get_table_names()) >= OPTUNA_TABLES
        engine.dispose()

    def test_an_upgrade_that_fails_changes_nothing(
        self, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with StudyDatabase.open(empty_url) as database:
            _fill(database)
        folder = _with_next_version(tmp_path, NEXT_VERSION + '    op.execute("DROP TABLE nothing_of_this_name")\n')
        monkeypatch.setattr(migrations, "FOLDER", folder)
        with monkeypatch.context() as patched:
            patched.setattr(schema, "VERSIONS", (*VERSIONS, "0002"))
            with pytest.raises(DatabaseError, match="nothing_of_this_name"):
                upgrade_database(empty_url)
        with StudyDatabase.open(empty_url) as database:
            assert database.study("first").error == "a fault"
            assert database.overview().rows["chunk_scores"] == len(SCORES)

    def test_the_known_versions_are_the_ones_that_there_are(self) -> None:
        scripts = ScriptDirectory.from_config(migrations.configuration())
        assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == VERSIONS

    # What is in it

    def test_an_overview_counts_everything(self, empty_url: str) -> None:
        with StudyDatabase.open(empty_url) as database:
            _fill(database)
            database.add_study(make_definition("second"))
            overview = database.overview()
        assert overview.version == VERSIONS[-1]
        assert overview.server.startswith(server_of(parse_url(empty_url)).name)
        counted = {"search_studies": 2, "search_stages": 1, "search_trials": 1, "search_trial_layers": len(RATES)}
        assert {table: overview.rows[table] for table in counted} == counted
        assert set(overview.rows) == set(Table.metadata.tables)
        expected = {StudyState.FAILED: 1, StudyState.QUEUED: 1}
        assert {state: count for state, count in overview.studies.items() if count} == expected

    def test_optunas_numbers_come_back_bit_for_bit(self, empty_url: str) -> None:
        with StudyDatabase.open(empty_url) as database:
            study = optuna.create_study(storage=optuna_storage(database), study_name="first/01-layer 3")
            for score in SCORES:
                study.tell(study.ask(), score)
        with StudyDatabase.open(empty_url) as database:
            again = optuna.load_study(study_name="first/01-layer 3", storage=optuna_storage(database))
            assert [trial.value for trial in again.trials] == list(SCORES)

    def test_the_clock_is_seconds_and_moves_within_a_transaction(self, empty_url: str) -> None:
        with StudyDatabase.open(empty_url) as database, database._write() as session:
            first = session.execute(select(database._server.clock())).scalar_one()
            time.sleep(0.02)
            second = session.execute(select(database._server.clock())).scalar_one()
        assert abs(first - time.time()) < 60
        assert 0.015 < second - first < 10

    def test_a_reader_waits_for_no_writer_and_sees_one_moment(self, empty_url: str) -> None:
        with StudyDatabase.open(empty_url) as database, StudyDatabase.open(empty_url) as other:
            database.add_study(make_definition())
            count = select(sqlalchemy.func.count()).select_from(StudyRow)
            with other._read() as reader:
                assert reader.execute(count).scalar_one() == 1
                with database._write() as writer:
                    writer.add(StudyRow(name="second", digest="sha256:d", definition="{}"))
                    writer.flush()
                    assert len(other.studies()) == 1
                assert reader.execute(count).scalar_one() == 1
            with other._read() as reader:
                assert reader.execute(count).scalar_one() == 2

    # Several processes

    @pytest.mark.slow
    def test_processes_that_add_the_same_chunks_all_succeed(self, empty_url: str) -> None:
        writers = [_python(ADD_CHUNKS, empty_url, "40") for _ in range(3)]
        outcomes = [writer.communicate(timeout=120) for writer in writers]
        assert [writer.returncode for writer in writers] == [0, 0, 0], outcomes
        with StudyDatabase.open(empty_url) as database:
            assert database.overview().rows["chunk_scores"] == 640

    @pytest.mark.slow
    @pytest.mark.parametrize("seconds", [0.0, 0.03, 0.1])
    def test_a_killed_writer_loses_no_chunk_that_it_was_told_is_recorded(self, empty_url: str, seconds: float) -> None:
        writer = _python(ADD_CHUNKS, empty_url, "10000")
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(seconds)
        writer.send_signal(signal.SIGKILL)
        told = [int(line) for line in writer.stdout.read().splitlines()]
        writer.communicate()
        assert writer.returncode == -signal.SIGKILL
        with StudyDatabase.open(empty_url) as database:
            evaluation = database.evaluation("sha256:key", "search", "sha256:data", REDUCTION, 10_000)
            recorded = database.chunk_scores(evaluation)
            assert 0 <= len(recorded) - len(told) <= 1
            assert recorded == {chunk: expected_chunk(chunk) for chunk in range(len(recorded))}
            database.add_chunk(evaluation, len(recorded), expected_chunk(len(recorded)))


def expected_chunk(chunk: int) -> tuple[float, ...]:
    return tuple(((chunk * 16 + i) % 97) / 97 for i in range(16))


def _fill(database: StudyDatabase) -> None:
    """One of everything that belongs to a study, so that a table that loses its rows is noticed."""
    study = database.add_study(make_definition())
    stage = database.stage(study, 0, "layer 3", "sha256:domain")
    database.begin_trial(stage, 0, 21, RATES, "sha256:key")
    database.finish_trial(stage, 0, FIGURES)
    evaluation = database.evaluation("sha256:key", "search", "sha256:data", REDUCTION, 4)
    database.add_chunk(evaluation, 0, SCORES)
    database.record_schedule(study, 1, "{}", "sha256:a")
    database.set_state(study, StudyState.FAILED, error="a fault")


def _with_next_version(folder: Path, script: str = NEXT_VERSION) -> Path:
    copy = folder / "migrations"
    shutil.copytree(migrations.FOLDER, copy)
    (copy / "versions" / "version_0002.py").write_text(script)
    return copy


def _constraints(connection: sqlalchemy.Connection) -> dict[str, list[tuple[object, ...]]]:
    inspector = inspect(connection)
    return {
        table: sorted(
            [
                *((check["name"], check["sqltext"]) for check in inspector.get_check_constraints(table)),
                *((key["name"], str(key["options"])) for key in inspector.get_foreign_keys(table)),
                ("primary", *inspector.get_pk_constraint(table)["constrained_columns"]),
            ],
            key=str,
        )
        for table in Table.metadata.tables
    }


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment)


def _refused(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message) as caught:
        StudyDatabase.open(url)
    assert "\n" not in str(caught.value)
