"""The coordinator's benchmark runs, and a trial asks the database as often late in a long history as early.

No test looks at a time.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import event

from benchmarks import coordinator
from scheduler_search.coordinator import run_study
from scheduler_search.coordinator.events import Event, TrialFinished
from scheduler_search.storage import StudyDatabase
from tests.coordinator.simulated import SimulatedExecutor

pytestmark = pytest.mark.slow


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    coordinator.main(["--servers", "sqlite", "--history", "10", "--trials", "12"])
    lines = capsys.readouterr().out.splitlines()
    cells = [dict(zip(coordinator.COLUMNS, line.strip("| ").split(" | "), strict=True)) for line in lines[2:5]]
    assert [(row["recorded before"], row["stage"], row["trials"]) for row in cells] == [
        ("0", "p-sigmoid", "30"),
        ("10", "p-sigmoid", "30"),
        ("10", "long", "12"),
    ]
    assert all(float(row["processor, mean ms"]) > 0 for row in cells)


def test_statements_per_trial_do_not_grow(tmp_path: Path) -> None:
    """Of ours and of Optuna's, in a stage of 60 trials after 200 trials of other studies."""
    url = f"sqlite:///{tmp_path}/study.db"
    coordinator.fill(url, 200, recorded=20)
    statements, counts = 0, []

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    def listen(event_: Event) -> None:
        if isinstance(event_, TrialFinished):
            counts.append(statements)

    with StudyDatabase.open(url) as database:
        study = database.add_study(coordinator.definition("counted", sampler="random"))
        event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
        try:
            run_study(database, study, SimulatedExecutor(), listen, algorithm=coordinator.LongStage(60))
        finally:
            event.remove(sqlalchemy.Engine, "before_cursor_execute", count)
    spans = [after - before for before, after in itertools.pairwise(counts)]
    # A heartbeat, every four seconds, asks twice.
    assert max(spans[-10:]) <= min(spans[:10]) + 4
