"""A database file of every released version can be upgraded, and nothing in it is lost.

``released/make.py`` wrote them; what is in them is told there.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from scheduler_search.storage import StudyDatabase, optuna_storage, upgrade_database
from scheduler_search.storage.schema import VERSIONS
from scheduler_search.study.front import BaselineScore, FrontPoint
from scheduler_search.study.states import EvaluationTotals, StudyState
from tests.storage.released.make import FOLDER


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(version: str, tmp_path: Path) -> str:
    shutil.copy(FOLDER / f"{version}.db", tmp_path / "study.db")
    return f"sqlite:///{tmp_path}/study.db"


def test_everything_is_there_after_an_upgrade(url: str, version: str) -> None:
    assert upgrade_database(url) == (version, VERSIONS[-1])
    with StudyDatabase.open(url, create=False) as database:
        states = {study.name: study.state for study in database.studies()}
        assert states == {
            "finished": StudyState.FINISHED,
            "front": StudyState.QUEUED,
            "queued": StudyState.QUEUED,
        }
        finished, front = database.study("finished"), database.study("front")
        assert finished.definition.search.stride == 5
        stages = database.stages(finished)
        assert [stage.decision and stage.decision.value for stage in stages] == [0.75, 0.75]
        assert [len(database.trials(stage)) for stage in stages] == [4, 3]
        assert database.evaluation_totals() == EvaluationTotals(evaluations=6, chunks=6, samples=96, hits=1)
        assert database.schedule(finished) == '{"schedule": "é"}\n'
        assert database.front(front) == [FrontPoint(0.5, 1.5, 1e12, 1 / 3, 0.02, -0.1, 0.01, True)]
        assert database.baselines(front) == [BaselineScore(0.5, "uniform", 1e12, 0.25, -0.2, 1e-4)]
        assert database.logs(finished)[-1].text == "finished"
        assert len(optuna_storage(database).get_all_studies()) == 2


def test_an_upgraded_database_lets_readers_and_writers_go_on_together(url: str) -> None:
    upgrade_database(url)
    with StudyDatabase.open(url) as database, database._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_released_version_does_not_change(tmp_path: Path) -> None:
    """What a version makes today is what it made when it was released."""
    StudyDatabase.open(f"sqlite:///{tmp_path}/fresh.db").close()
    assert _schema(tmp_path / "fresh.db") == _schema(FOLDER / f"{VERSIONS[-1]}.db")


def _schema(file: Path) -> set[tuple[str, str]]:
    ours = "search_%", "evaluation%", "chunk_scores", "schedules", "prefill_milliseconds", "scheduler_search_version"
    where = " OR ".join(f"tbl_name LIKE '{pattern}'" for pattern in ours)
    with closing(sqlite3.connect(file)) as connection:
        return set(connection.execute(f"SELECT name, sql FROM sqlite_master WHERE {where}"))
