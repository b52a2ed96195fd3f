from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler_search.coordinator import Evaluations, run_study
from scheduler_search.errors import ExportError, GateError, ScheduleDocumentError
from scheduler_search.export import (
    check_folder,
    check_gate,
    check_validated,
    compare,
    freeze,
    measure,
    publish,
    recorded_document,
    searched_reduction,
    unreduced,
)
from scheduler_search.schedule.document import ScheduleDocument, read_document
from scheduler_search.schedule.record import Measured
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import StudyDefinition
from scheduler_search.study.states import StudyRecord
from tests.coordinator.simulated import LAYERS, SimulatedExecutor

SOFTWARE = {"scheduler-search": "0"}


def definition(**data: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "name": "simulated",
            "model": {"id": "testbed:tiny-llava"},
            "data": {"source": "testbed", "search": {"samples": 40}, **data},
            "search": {"first_layer": 4, "stride": 5, "initial": 2, "iterations": 2, "penalty": 0.1},
        }
    )


@pytest.fixture
def database(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StudyDatabase]:
    """Empty, or with the finished study where the test asks for it."""
    if "finished" in request.fixturenames:
        shutil.copy(request.getfixturevalue("searched"), tmp_path / "study.db")
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one finished study and its measurement, made once and copied for every test."""
    path = tmp_path_factory.mktemp("searched") / "study.db"
    with StudyDatabase.open(f"sqlite:///{path}") as database:
        study = database.add_study(definition(validation={"samples": 40}))
        run_study(database, study, SimulatedExecutor())
        measured(database, study)
    return path


@pytest.fixture
def finished(database: StudyDatabase) -> StudyRecord:
    return database.study("simulated")


def measured(database: StudyDatabase, study: StudyRecord) -> Measured:
    executor = SimulatedExecutor()
    return measure(
        searched_reduction(database, database.study(study.name)),
        metric="exact-match",
        first_layer=4,
        seed=0,
        executor=executor,
        scores=Evaluations(database, executor).scores,
    )


def frozen(database: StudyDatabase, study: StudyRecord) -> ScheduleDocument:
    return freeze(study, searched_reduction(database, study), measured(database, study), SimulatedExecutor(), SOFTWARE)


def write(database: StudyDatabase, study: StudyRecord, out: Path, max_drop: float | None = None) -> Path:
    document = frozen(database, study)
    return publish(database, study, document, out, max_drop=max_drop, replace=False)


def test_the_document_says_what_was_searched_and_measured(
    database: StudyDatabase, finished: StudyRecord, tmp_path: Path
) -> None:
    document = read_document(write(database, finished, tmp_path / "out"))
    assert document.schedule.reduction == searched_reduction(database, finished)
    provenance = document.provenance
    assert (provenance.study, provenance.algorithm, provenance.search_samples) == ("simulated", "g-search", 40)
    assert provenance.search_data_digest != provenance.validation_data_digest
    assert provenance.algorithm_parameters["penalty"] == 0.1
    assert document.measured is not None
    assert document.measured.samples == 40


def test_every_baseline_is_there_and_judged_by_its_interval(database: StudyDatabase, finished: StudyRecord) -> None:
    rows = measured(database, finished).baselines
    names = {"uniform", "fastv", "random", "random-uniform", "pooling", "pyramid-drop", "withdraw"}
    assert {row.name for row in rows} == names
    assert all(row.beaten == (row.difference.interval[0] > 0) for row in rows)
    assert any(row.beaten for row in rows)
    assert not all(row.beaten for row in rows)


def test_costs_and_scores_of_a_comparison(database: StudyDatabase, finished: StudyRecord) -> None:
    executor = SimulatedExecutor()
    scores = Evaluations(database, executor).scores
    reduction = searched_reduction(database, finished)
    same = compare(unreduced(reduction), "validation", executor, scores)
    assert same.difference.mean == 0.0
    assert (same.kv_cache_ratio, same.tflops.reduced) == (1.0, same.tflops.unreduced)
    less = compare(reduction, "validation", executor, scores)
    assert less.tflops.reduced < less.tflops.unreduced
    assert less.vision_kv_cache_ratio < less.kv_cache_ratio < 1.0
    assert less.reduced.score == sum(scores("validation", reduction)) / 40


def test_publishing_again_writes_the_same_bytes(database: StudyDatabase, finished: StudyRecord, tmp_path: Path) -> None:
    first = write(database, finished, tmp_path / "one").read_bytes()
    again = recorded_document(database, finished)
    assert again is not None
    path = publish(database, finished, again, tmp_path / "two", max_drop=None, replace=False)
    assert path.read_bytes() == first


def test_a_different_document_in_the_way_is_left_alone(
    database: StudyDatabase, finished: StudyRecord, tmp_path: Path
) -> None:
    path = tmp_path / "out" / "simulated" / "simulated.v1.json"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ScheduleDocumentError, match="never overwritten"):
        write(database, finished, tmp_path / "out")
    assert path.read_text() == "mine"


def test_the_gate_closes_at_the_upper_limit_of_the_loss(
    database: StudyDatabase, finished: StudyRecord, tmp_path: Path
) -> None:
    document = frozen(database, finished)
    assert document.measured is not None
    limit = -document.measured.difference.interval[0]
    check_gate(document, limit)
    with pytest.raises(GateError, match="must not exceed"):
        check_gate(document, limit - 1e-9)
    with pytest.raises(GateError):
        write(database, finished, tmp_path / "out", max_drop=limit - 1e-9)
    assert not (tmp_path / "out").exists()
    assert database.schedule(finished) is None


def test_the_gate_is_closed_without_a_measurement(database: StudyDatabase, finished: StudyRecord) -> None:
    document = freeze(finished, searched_reduction(database, finished), None, SimulatedExecutor(), SOFTWARE)
    assert document.measured is None
    assert document.provenance.validation_data_digest is None
    check_gate(document, None)
    with pytest.raises(GateError, match="unvalidated"):
        check_gate(document, 1.0)


def test_a_hub_id_does_not_become_a_folder_of_folders(
    database: StudyDatabase, finished: StudyRecord, tmp_path: Path
) -> None:
    document = frozen(database, finished)
    model = dataclasses.replace(document.schedule.model, id="llava-hf/llava-1.5-7b-hf")
    other = dataclasses.replace(document, schedule=dataclasses.replace(document.schedule, model=model))
    path = publish(database, finished, other, tmp_path, max_drop=None, replace=False)
    assert path.relative_to(tmp_path) == Path("llava-hf--llava-1.5-7b-hf/simulated.v1.json")


def test_an_unfinished_study_is_not_exported(database: StudyDatabase) -> None:
    study = database.add_study(definition(validation={"samples": 40}))
    with pytest.raises(ExportError, match=r"must be finished.*queued.*scheduler-search resume simulated"):
        searched_reduction(database, study)


def test_a_study_without_validation_needs_to_be_allowed(database: StudyDatabase) -> None:
    study = database.add_study(definition())
    with pytest.raises(ExportError, match="--allow-unvalidated"):
        check_validated(study, allow_unvalidated=False)
    check_validated(study, allow_unvalidated=True)


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_folder(tmp_path / "new" / "deeper")
    with pytest.raises(ExportError, match="not a folder"):
        check_folder(tmp_path / "file" / "deeper")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_unreduced_keeps_everything(database: StudyDatabase, finished: StudyRecord) -> None:
    assert unreduced(searched_reduction(database, finished)).keep_rates == (1.0,) * LAYERS
