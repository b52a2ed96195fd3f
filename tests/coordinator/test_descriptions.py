"""What a study records of its model and its splits, and what can be answered from that alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler_search.coordinator import Evaluations, RecordedExecutor, TimedExecutor, record_descriptions
from scheduler_search.errors import DatabaseError, NotRecordedError
from scheduler_search.rule import make_rule
from scheduler_search.schedule.cost import VisionShape
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.states import StudyRecord
from scheduler_search.study.values import Executor, ModelDescription
from tests.coordinator.simulated import LAYERS, SimulatedExecutor
from tests.coordinator.test_run import definition

REDUCED = Reduction((1.0, 1.0) + (0.5,) * (LAYERS - 2), make_rule("attention-rank"))
FULL = Reduction((1.0,) * LAYERS, make_rule("attention-rank"))


class Towered(SimulatedExecutor):
    """A model with every optional part of a shape."""

    def model(self) -> ModelDescription:
        plain = super().model()
        tower = VisionShape(3, 8, 2, 16, 16, 12, 4, windows=(None, 4, None), native=True)
        shape = dataclasses.replace(plain.shape, vision=tower, projectors=2)
        return dataclasses.replace(plain, shape=shape, environment=(("torch", "2"), ("device", "none")))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[StudyDatabase]:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


@pytest.fixture
def study(database: StudyDatabase) -> StudyRecord:
    return database.add_study(definition())


@pytest.mark.parametrize("executor", [SimulatedExecutor(), Towered()], ids=["plain", "tower"])
def test_descriptions_come_back_as_they_were(database: StudyDatabase, study: StudyRecord, executor: Executor) -> None:
    record_descriptions(database, study, executor)
    record_descriptions(database, study, executor)
    recorded = RecordedExecutor(database, study)
    assert recorded.model() == executor.model()
    for name in study.definition.data.splits:
        assert recorded.split(name) == executor.split(name)


def test_the_newest_description_counts(database: StudyDatabase, study: StudyRecord) -> None:
    for executor in (SimulatedExecutor(samples=40), Towered(samples=24)):
        record_descriptions(database, study, executor)
    recorded = RecordedExecutor(database, study)
    assert recorded.split("search").samples == 24
    assert recorded.model() == Towered().model()


def test_each_study_has_its_own(database: StudyDatabase, study: StudyRecord) -> None:
    record_descriptions(database, study, SimulatedExecutor())
    other = database.add_study(definition(name="other"))
    assert database.model_description(other) is None
    assert database.split_description(other, "search") is None


def test_nothing_is_answered_that_is_not_recorded(database: StudyDatabase, study: StudyRecord) -> None:
    recorded = RecordedExecutor(database, study)
    with pytest.raises(NotRecordedError, match=r"no record of the description of the model.*simulated"):
        recorded.model()
    with pytest.raises(NotRecordedError, match="the search split"):
        recorded.split("search")


def test_recorded_scores_are_read_and_others_are_not_computed(database: StudyDatabase, study: StudyRecord) -> None:
    live = SimulatedExecutor()
    record_descriptions(database, study, live)
    scores = Evaluations(database, live).scores("search", REDUCED)
    recorded = Evaluations(database, RecordedExecutor(database, study))
    assert recorded.scores("search", REDUCED) == scores
    with pytest.raises(NotRecordedError, match="chunk 0 of a schedule on the search split"):
        recorded.scores("search", FULL)


def test_a_prefill_is_timed_once_unless_asked_again(database: StudyDatabase, study: StudyRecord) -> None:
    live = SimulatedExecutor()
    record_descriptions(database, study, live)
    timed = TimedExecutor(database, live)
    with pytest.raises(DatabaseError, match="a reduction is evaluated before"):
        timed.prefill_milliseconds("search", (REDUCED, FULL))
    Evaluations(database, live).scores("search", REDUCED)
    assert RecordedExecutor(database, study).prefill_milliseconds("search", (REDUCED, FULL)) == ()
    first = timed.prefill_milliseconds("search", (REDUCED, FULL))
    live.prefill_milliseconds = lambda split, reductions: (5.0, 9.0)  # type: ignore[method-assign]  # noqa: ARG005
    assert TimedExecutor(database, live).prefill_milliseconds("search", (REDUCED, FULL)) == first
    assert RecordedExecutor(database, study).prefill_milliseconds("search", (REDUCED, FULL)) == first
    assert TimedExecutor(database, live, again=True).prefill_milliseconds("search", (REDUCED, FULL)) == (5.0, 9.0)
    assert RecordedExecutor(database, study).prefill_milliseconds("search", (REDUCED, FULL)) == (5.0, 9.0)
