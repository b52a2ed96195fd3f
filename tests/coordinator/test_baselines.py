from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler_search.coordinator import run_study
from scheduler_search.coordinator.baselines import COMPARED
from scheduler_search.coordinator.events import BaselineScored, Event
from scheduler_search.search.target import SHOWN
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.states import StudyState
from tests.coordinator.simulated import SimulatedExecutor
from tests.coordinator.test_run import DyingExecutor, Killed, definition, optuna_trials, snapshot

NAMES = ["frontier", "uniform", "fastv", "random", "random-uniform", "pooling", "pyramid-drop", "withdraw"]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[StudyDatabase]:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


def test_a_frontier_study_records_its_front_and_baselines(database: StudyDatabase) -> None:
    study = database.add_study(definition(algorithm="frontier"))
    executor = SimulatedExecutor()
    events: list[Event] = []
    run_study(database, study, executor, events.append)
    assert database.study(study.name).state is StudyState.FINISHED
    front, baselines = database.front(study), database.baselines(study)
    assert tuple(point.budget for point in front) == SHOWN
    assert front[0].difference == pytest.approx(0.0, abs=1e-2)
    assert [point.flops for point in front] == sorted((point.flops for point in front), reverse=True)
    assert [(score.budget, score.name) for score in baselines] == [(b, name) for b in COMPARED for name in NAMES]
    assert [event.score for event in events if isinstance(event, BaselineScored)] == [one.score for one in baselines]
    unreduced = database.trials(database.stages(study)[0])[0].figures
    assert unreduced is not None
    points = {point.budget: point for point in front}
    for score in baselines:
        if score.name == "frontier":
            assert score.flops == points[score.budget].flops
        elif score.name not in ("withdraw", "pooling"):
            # Below it by at most a few tokens of the 16 of this model.
            assert 0.9 * points[score.budget].flops <= score.flops <= points[score.budget].flops
        assert score.difference == pytest.approx(score.score - unreduced.score)
        assert 0.0 <= score.variance < 0.02
    assert {task.split for task in executor.executed} == {"search"}
    assert all(math.isfinite(point.standard_error) for point in front)


@pytest.mark.slow
def test_other_studies_record_none(database: StudyDatabase) -> None:
    study = database.add_study(definition())
    run_study(database, study, SimulatedExecutor())
    assert database.front(study) == []
    assert database.baselines(study) == []


@pytest.mark.slow
def test_a_frontier_study_killed_after_any_chunk_continues_exactly(tmp_path: Path) -> None:
    settings = {"algorithm": "frontier", "batch": 2}
    with StudyDatabase.open(f"sqlite:///{tmp_path}/undisturbed.db") as database:
        study = database.add_study(definition(**settings))
        undisturbed = SimulatedExecutor()
        run_study(database, study, undisturbed)
        expected = [*snapshot(database, study.name), database.front(study), database.baselines(study)]
        expected_optuna = optuna_trials(database, study.name)
    total = len(undisturbed.executed)
    with StudyDatabase.open(f"sqlite:///{tmp_path}/killed.db") as database:
        study = database.add_study(definition(**settings))
        executed = 0
        # The last kills are among the baselines.
        for chunks in (1, 8, 20, 10, 5, total):
            executor = DyingExecutor(chunks)
            try:
                run_study(database, study, executor)
            except Killed:
                executed += len(executor.executed) - 1
            else:
                executed += len(executor.executed)
        assert [*snapshot(database, study.name), database.front(study), database.baselines(study)] == expected
        assert optuna_trials(database, study.name) == expected_optuna
        assert executed == total
