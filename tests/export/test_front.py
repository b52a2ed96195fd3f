from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler_search.coordinator import Evaluations, run_study
from scheduler_search.errors import DatabaseError, ExportError, GateError
from scheduler_search.export import (
    chosen,
    expectation_of,
    freeze,
    measure,
    parameters_of,
    publish,
    recorded_document,
    reduction_of,
    target_of,
)
from scheduler_search.schedule.document import ScheduleDocument, read_document
from scheduler_search.schedule.families import mean_keep_rate
from scheduler_search.search.target import Target
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.states import StudyRecord
from scheduler_search.study.values import SplitDescription, SplitName
from tests.coordinator.simulated import SimulatedExecutor
from tests.coordinator.test_run import definition


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one finished frontier study, made once and copied for every test."""
    path = tmp_path_factory.mktemp("searched") / "study.db"
    with StudyDatabase.open(f"sqlite:///{path}") as database:
        study = database.add_study(definition(algorithm="frontier", initial=6, iterations=2))
        run_study(database, study, SimulatedExecutor())
    return path


@pytest.fixture
def database(tmp_path: Path, searched: Path) -> Iterator[StudyDatabase]:
    shutil.copy(searched, tmp_path / "study.db")
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


@pytest.fixture
def study(database: StudyDatabase) -> StudyRecord:
    return database.study("simulated")


def document_for(database: StudyDatabase, study: StudyRecord, target: Target) -> ScheduleDocument:
    executor = SimulatedExecutor()
    choice = chosen(database, study, executor, target)
    scores = Evaluations(database, executor).scores
    reduction = reduction_of(study, choice)
    measured = measure(reduction, metric="exact-match", first_layer=3, seed=0, executor=executor, scores=scores)
    return freeze(study, reduction, measured, executor, {"scheduler-search": "0"}, parameters_of(target, choice))


def test_a_document_says_what_was_asked_for_and_expected(
    database: StudyDatabase, study: StudyRecord, tmp_path: Path
) -> None:
    target = Target(keep_rate=0.4)
    document = document_for(database, study, target)
    path = publish(database, study, document, tmp_path, max_drop=None, replace=False, target=target.label)
    assert path.relative_to(tmp_path) == Path("simulated/simulated-keep-0.4.v1.json")
    read = read_document(path)
    assert read == document
    assert read.provenance.algorithm == "frontier"
    assert read.provenance.algorithm_parameters["target"] == {"keep_rate": 0.4}
    assert read.provenance.algorithm_parameters["first_layer"] == 3
    assert mean_keep_rate(read.schedule.reduction.keep_rates, 3) == pytest.approx(0.4)
    expected = expectation_of(read)
    assert expected is not None
    assert expected.score_error > 0.0
    choice = chosen(database, study, SimulatedExecutor(), target)
    assert expected.score == choice.prediction.score
    assert expected.difference_error**2 == pytest.approx(choice.prediction.difference_variance)


def test_targets_are_recorded_side_by_side_and_written_again_byte_for_byte(
    database: StudyDatabase, study: StudyRecord, tmp_path: Path
) -> None:
    targets = [Target(keep_rate=0.4), Target(keep_rate=0.7)]
    written = {}
    for target in targets:
        document = document_for(database, study, target)
        path = publish(database, study, document, tmp_path / "a", max_drop=None, replace=False, target=target.label)
        written[target] = path.read_bytes()
    assert database.exported_targets(study) == ["keep-0.4", "keep-0.7"]
    assert recorded_document(database, study) is None
    for target in targets:
        again = recorded_document(database, study, target.label)
        assert again is not None
        path = publish(database, study, again, tmp_path / "b", max_drop=None, replace=False, target=target.label)
        assert path.read_bytes() == written[target]
    other = document_for(database, study, targets[1])
    with pytest.raises(DatabaseError, match=r"must not change once recorded.*keep-0.4"):
        publish(database, study, other, tmp_path / "c", max_drop=None, replace=False, target="keep-0.4")
    publish(database, study, other, tmp_path / "c", max_drop=None, replace=True, target="keep-0.4")
    assert recorded_document(database, study, "keep-0.4") == other


def test_a_drop_that_cannot_be_promised_stops_before_anything_is_measured(
    database: StudyDatabase, study: StudyRecord
) -> None:
    executor = SimulatedExecutor()
    with pytest.raises(GateError, match="some schedule of the front must be expected to pass a gate of 0"):
        chosen(database, study, executor, Target(max_drop=0.0))
    assert executor.executed == []


def test_a_front_is_not_read_for_another_split(database: StudyDatabase, study: StudyRecord) -> None:
    class Other(SimulatedExecutor):
        def split(self, name: SplitName) -> SplitDescription:
            description = super().split(name)
            return dataclasses.replace(description, text_tokens=(9,) * description.samples)

    with pytest.raises(ExportError, match="the model and the search split that the front was searched on"):
        chosen(database, study, Other(), Target(keep_rate=0.4))


def test_an_unfinished_frontier_is_not_exported(tmp_path: Path) -> None:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/other.db") as database:
        study = database.add_study(definition(algorithm="frontier"))
        with pytest.raises(ExportError, match="must be finished"):
            chosen(database, study, SimulatedExecutor(), Target(keep_rate=0.4))


def test_options_become_targets(study: StudyRecord) -> None:
    assert target_of(study, 1.5, None, None) == Target(tflops=1.5)
    assert target_of(study, None, 0.25, None) == Target(keep_rate=0.25)
    assert target_of(study, None, None, 0.02) == Target(max_drop=0.02)
    # Beside a cost, the drop is the gate alone.
    assert target_of(study, None, 0.25, 0.02) == Target(keep_rate=0.25)
    assert target_of(study, 1.5, None, 0.02) == Target(tflops=1.5)


def test_options_that_fit_nothing_are_refused(study: StudyRecord, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no target.*add --tflops X, --keep-rate X or --max-drop X"):
        target_of(study, None, None, None)
    with pytest.raises(ExportError, match="one of --tflops and --keep-rate"):
        target_of(study, 1.0, 0.5, None)
    with StudyDatabase.open(f"sqlite:///{tmp_path}/other.db") as database:
        other = database.add_study(definition(name="other"))
        assert target_of(other, None, None, 0.1) is None
        for tflops, keep_rate in ((1.0, None), (None, 0.5)):
            with pytest.raises(ExportError, match=r"of a frontier study, but got algorithm g-search"):
                target_of(other, tflops, keep_rate, None)
