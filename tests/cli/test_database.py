"""The `database` commands, as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scheduler_search.cli.app import app
from scheduler_search.errors import DatabaseError
from scheduler_search.storage import StudyDatabase, schema
from scheduler_search.storage.schema import VERSIONS
from tests.conformance.store import REDUCTION, make_definition


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/studies.db"


def database(url: str, *arguments: str) -> str:
    """What the command prints, in one line; raises what it raises."""
    done = CliRunner().invoke(app, ["--database", url, "database", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_a_database_is_made_once(url: str) -> None:
    with pytest.raises(DatabaseError, match="the study database must exist"):
        database(url, "status")
    assert f"is made: {'SQLite' if 'sqlite' in url else 'PostgreSQL'}" in database(url, "init")
    assert "is ready" in database(url, "init")
    assert f"has version {VERSIONS[-1]} already" in database(url, "upgrade")


def test_status_counts(url: str) -> None:
    with StudyDatabase.open(url) as opened:
        for name in ("first", "second"):
            opened.add_study(make_definition(name))
        evaluation = opened.evaluation("sha256:key", "search", "sha256:data", REDUCTION, 4)
        opened.add_chunk(evaluation, 0, [0.5, 0.25])
        opened.add_hits(evaluation, 3)
    printed = database(url, "status")
    assert "queued │ 2" in printed
    assert "1 evaluations of 1 chunks; 3 hits (75%)" in printed
    document = json.loads(database(url, "status", "--json"))
    assert document["version"] == VERSIONS[-1]
    assert document["rows"]["chunk_scores"] == 2
    assert document["studies"]["queued"] == 2
    assert document["evaluations"] == {"evaluations": 1, "chunks": 1, "samples": 2, "hits": 3}


def test_an_older_database_names_the_remedy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    StudyDatabase.open(url).close()
    monkeypatch.setattr(schema, "VERSIONS", (*VERSIONS, "9999"))
    with pytest.raises(DatabaseError, match="scheduler-search database upgrade"):
        database(url, "status")


def test_a_backup_is_a_study_database(tmp_path: Path) -> None:
    url, file = f"sqlite:///{tmp_path}/studies.db", tmp_path / "copy.db"
    with StudyDatabase.open(url) as opened:
        study = opened.add_study(make_definition())
        assert "use it with --database sqlite:///" in database(url, "backup", str(file))
    with StudyDatabase.open(f"sqlite:///{file}", create=False) as copy:
        assert copy.studies() == [study]
