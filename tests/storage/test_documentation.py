"""docs/database.md names every table and column, and its queries run on both servers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import text

from scheduler_search.coordinator import run_study
from scheduler_search.storage import StudyDatabase
from scheduler_search.storage.tables import Table
from scheduler_search.study.definition import StudyDefinition
from tests.coordinator.simulated import SimulatedExecutor

PAGE = (Path(__file__).parents[2] / "docs" / "database.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?);\n```", PAGE, re.DOTALL)


def test_every_column_is_explained() -> None:
    explained: dict[str, list[str]] = {}
    for section in PAGE.split("\n### ")[1:]:
        rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        explained[re.split(r"[:\n]", section)[0]] = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    explained.pop("scheduler_search_version")
    assert {name: sorted(columns) for name, columns in explained.items()} == {
        name: sorted(table.columns.keys()) for name, table in Table.metadata.tables.items()
    }


def test_references_lead_where_they_say() -> None:
    named = set(re.findall(r"→ `(\w+\.\w+)`", PAGE)) | set(re.findall(r"→ `\w+\.\w+`, `(\w+\.\w+)`", PAGE))
    keys = [key for table in Table.metadata.tables.values() for key in table.foreign_keys]
    assert named == {key.target_fullname for key in keys}


def searched(url: str) -> None:
    """Two studies that share their evaluations."""
    settings = {"first_layer": 4, "stride": 5, "initial": 2, "iterations": 1, "penalty": 0.5, "refine": False}
    with StudyDatabase.open(url) as database:
        for name in ("quickstart", "again"):
            definition = StudyDefinition.model_validate(
                {
                    "name": name,
                    "model": {"id": "testbed:tiny-llava"},
                    "data": {"source": "testbed", "search": {"samples": 16}},
                    "search": settings,
                }
            )
            run_study(database, database.add_study(definition), SimulatedExecutor(samples=16))


@pytest.fixture(params=["sqlite", "postgresql"])
def connection(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sqlalchemy.Connection]:
    url = f"sqlite:///{tmp_path}/study.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_studies_url")
    searched(url)
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as opened:
        yield opened
    engine.dispose()


@pytest.mark.slow
def test_queries_answer(connection: sqlalchemy.Connection) -> None:
    standing, rates, candidates, shared, samples = (connection.execute(text(query)).all() for query in QUERIES)
    assert [(row.name, row.state, row.owner, row.stages_decided) for row in standing] == [
        ("quickstart", "finished", None, 2),
        ("again", "finished", None, 2),
    ]
    assert [row.layer for row in rates] == list(range(1, 13))
    assert [row.keep_rate for row in rates[:3]] == [1.0, 1.0, 1.0]
    assert all(0 <= row.keep_rate <= 1 for row in rates)
    assert len(candidates) == standing[0].trials
    assert [
        sum(bool(row.chosen) for row in candidates if row.stage == stage) for stage in ("layer-04", "layer-09")
    ] == [
        1,
        1,
    ]
    assert {row.studies for row in shared} == {2}
    assert sum(row.hits for row in shared) >= len(shared)
    assert samples
    assert all(row.first != row.chosen for row in samples)
