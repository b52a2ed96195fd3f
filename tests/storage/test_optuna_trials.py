"""Optuna's tables and ours lie in one database and keep apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages._rdb.models import BaseModel

from scheduler_search.storage import StudyDatabase, optuna_storage
from scheduler_search.storage.schema import OPTUNA_TABLES
from scheduler_search.storage.tables import Table
from tests.conformance.store import make_definition


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


def test_the_known_optuna_tables_are_the_ones_it_has() -> None:
    assert set(BaseModel.metadata.tables) | {"alembic_version"} == OPTUNA_TABLES


def test_no_table_of_ours_has_the_name_of_one_of_optunas() -> None:
    assert not set(Table.metadata.tables) & OPTUNA_TABLES


def test_both_are_durable_in_one_file(url: str) -> None:
    with StudyDatabase.open(url) as database:
        database.add_study(make_definition())
        storage = optuna_storage(database)
        with storage.engine.connect() as connection:
            pragmas = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
            values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
        assert values == ["wal", 2, 30000, 1]
        study = optuna.create_study(storage=storage, study_name="first/01-layer 3")
        study.tell(study.ask(), 0.5)
    with StudyDatabase.open(url) as database:
        assert [study.name for study in database.studies()] == ["first"]
        again = optuna.load_study(study_name="first/01-layer 3", storage=optuna_storage(database))
        assert [trial.value for trial in again.trials] == [0.5]


@pytest.mark.slow
def test_importing_the_package_imports_neither_optuna_nor_torch() -> None:
    code = "import sys, scheduler_search.storage; print(sorted({'optuna', 'torch', 'transformers'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "[]"
