"""Writes the database file of a released version, which is kept from then on to test that it can be upgraded.

Run it with the code of that version: ``python -m tests.storage.released.make``.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from scheduler_search.coordinator import run_study
from scheduler_search.storage import StudyDatabase
from scheduler_search.storage.schema import VERSIONS
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.front import BaselineScore, FrontPoint
from tests.conformance.store import make_definition
from tests.coordinator.simulated import SimulatedExecutor

FOLDER = Path(__file__).parent


def main() -> None:
    file = FOLDER / f"{VERSIONS[-1]}.db"
    if file.exists():
        raise SystemExit(f"{file} is a released version; it must not change")
    with StudyDatabase.open(f"sqlite:///{file}") as database:
        _finished_study(database)
        _study_with_a_front(database)
        database.add_study(make_definition("queued"))
    _shrink(file)


def _finished_study(database: StudyDatabase) -> None:
    definition = StudyDefinition.model_validate(
        {
            "name": "finished",
            "model": {"id": "testbed:tiny-llava"},
            "data": {"source": "testbed", "search": {"samples": 16}, "validation": {"samples": 16}},
            "search": {"first_layer": 4, "stride": 5, "initial": 2, "iterations": 2},
        }
    )
    study = database.add_study(definition)
    run_study(database, study, SimulatedExecutor(samples=16))
    database.record_schedule(study, 1, '{"schedule": "é"}\n', "sha256:schedule", max_drop=0.01, loss_limit=0.005)


def _study_with_a_front(database: StudyDatabase) -> None:
    study = database.add_study(make_definition("front"))
    database.record_front(study, [FrontPoint(0.5, 1.5, 1e12, 1 / 3, 0.02, -0.1, 0.01, True)])
    database.record_baselines(study, [BaselineScore(0.5, "uniform", 1e12, 0.25, -0.2, 1e-4)])


def _shrink(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        for statement in ("PRAGMA journal_mode=DELETE", "PRAGMA page_size=1024", "VACUUM"):
            connection.execute(statement)


if __name__ == "__main__":
    main()
