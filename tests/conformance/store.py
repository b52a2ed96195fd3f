"""What every study database must do, whatever server it lies on.

A backend inherits ``StoreConformance`` and overrides the fixture ``url`` with the URL of an empty database.
"""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler_search.errors import DatabaseError, StudyConflictError, StudyNotFoundError
from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.rule_section import RuleSection
from scheduler_search.study.states import (
    TRANSITIONS,
    Decision,
    Figures,
    StageRecord,
    StudyRecord,
    StudyState,
    TrialRecord,
)
from tests.conformance.leases import LeaseConformance
from tests.conformance.queue import QueueConformance
from tests.conformance.results import ResultConformance

RATES = (1.0, 1.0, 1 / 3, 0.1)
REDUCTION = Reduction(RATES, make_rule("attention-rank"))
DECISION = Decision(0, "layer 3", 21, "keep_rate", 1 / 3, RATES, 0.9, 0.9 - 0.01 / 3)
FIGURES = Figures(0.1 + 0.2, -1 / 3, 1e-17, 0.29, samples=40, total=40)
# The database is the same for all examples of a property, and the property the same for all servers.
_SHARED = (HealthCheck.function_scoped_fixture, HealthCheck.differing_executors)
MEASURED = ("score", "difference", "variance", "objective")


def make_definition(name: str = "first", *, samples: int = 8, **search: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "name": name,
            "model": {"id": "testbed:tiny-llava"},
            "data": {"source": "testbed", "search": {"samples": samples}},
            "search": search,
        }
    )


class StoreConformance(LeaseConformance, QueueConformance, ResultConformance):
    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def database(self, url: str) -> Iterator[StudyDatabase]:
        with StudyDatabase.open(url) as database:
            yield database

    @pytest.fixture
    def study(self, database: StudyDatabase) -> StudyRecord:
        return database.add_study(make_definition())

    @pytest.fixture
    def stage(self, database: StudyDatabase, study: StudyRecord) -> StageRecord:
        return database.stage(study, 0, "layer 3", "sha256:domain")

    @pytest.fixture
    def evaluation(self, database: StudyDatabase) -> int:
        return database.evaluation("sha256:key", "search", "sha256:data", REDUCTION, 4)

    # Studies

    def test_a_study_comes_back_as_it_was_added(self, database: StudyDatabase, url: str) -> None:
        definition = make_definition(penalty=0.1 + 0.2)
        added = database.add_study(definition)
        assert added.state is StudyState.QUEUED
        assert added.error is None
        assert (added.definition, added.digest) == (definition, definition.digest)
        with StudyDatabase.open(url) as again:
            assert again.study("first") == added

    def test_times_are_utc(self, study: StudyRecord) -> None:
        assert abs(datetime.now(UTC) - study.created) < timedelta(minutes=5)

    def test_adding_an_equal_study_returns_the_recorded_one(self, database: StudyDatabase, study: StudyRecord) -> None:
        database.set_state(study, StudyState.RUNNING)
        again = database.add_study(make_definition(stride=3))
        assert (again.id, again.state) == (study.id, StudyState.RUNNING)
        assert len(database.studies()) == 1

    def test_another_definition_under_the_same_name_is_refused(
        self, database: StudyDatabase, study: StudyRecord
    ) -> None:
        with pytest.raises(StudyConflictError, match=r"study keeps its definition.*study 'first'.*another name"):
            database.add_study(make_definition(samples=9))
        with pytest.raises(StudyConflictError, match="study keeps its definition"):
            database.check_definition(make_definition(samples=9))
        assert database.study("first").definition == study.definition

    def test_a_rule_that_has_a_newer_version_since_is_named(self, database: StudyDatabase) -> None:
        old, new = (
            make_definition().model_copy(update={"rule": RuleSection(name="fastv", version=version)})
            for version in (1, 2)
        )
        database.add_study(old)
        with pytest.raises(StudyConflictError, match=r"rule 'fastv' was recorded in version 1: write version = 1 in"):
            database.add_study(new)

    def test_checking_a_definition_writes_nothing(self, database: StudyDatabase) -> None:
        database.check_definition(make_definition())
        assert database.studies() == []
        database.add_study(make_definition())
        database.check_definition(make_definition(stride=3))

    def test_recorded_paths_follow_a_moved_study(self, database: StudyDatabase) -> None:
        def at(folder: str) -> StudyDefinition:
            document = make_definition().to_document()
            document["data"] = {"source": "jsonl", "path": f"{folder}/a.jsonl", "search": {"samples": 8}}
            return StudyDefinition.model_validate({**document, "written_paths": (("data.path", "a.jsonl"),)})

        database.add_study(at("/old"))
        assert database.add_study(at("/new")).definition.data.path == "/new/a.jsonl"
        assert database.study("first").definition.data.path == "/new/a.jsonl"

    @pytest.mark.usefixtures("study")
    def test_an_unknown_study_names_the_nearest_ones(self, database: StudyDatabase) -> None:
        with pytest.raises(StudyNotFoundError, match=r"'frist'.*did you mean 'first'"):
            database.study("frist")
        with pytest.raises(StudyNotFoundError, match="known studies: first"):
            database.study("zzz")

    def test_an_empty_database_says_so(self, database: StudyDatabase) -> None:
        assert database.studies() == []
        with pytest.raises(StudyNotFoundError, match="holds no study yet"):
            database.study("first")

    def test_studies_are_listed_in_the_order_of_adding(self, database: StudyDatabase) -> None:
        for name in ("c", "a", "b"):
            database.add_study(make_definition(name))
        assert [study.name for study in database.studies()] == ["c", "a", "b"]

    @pytest.mark.parametrize("origin", StudyState)
    @pytest.mark.parametrize("target", StudyState)
    def test_states_change_by_the_table_only(
        self, database: StudyDatabase, study: StudyRecord, origin: StudyState, target: StudyState
    ) -> None:
        for step in _way_to(origin):
            database.set_state(study, step)
        if target is origin or target in TRANSITIONS[origin]:
            database.set_state(study, target)
            assert database.study("first").state is target
        else:
            with pytest.raises(StudyConflictError, match=f"{origin.value} to {target.value}"):
                database.set_state(study, target)
            assert database.study("first").state is origin

    def test_an_error_is_kept_until_the_next_state(self, database: StudyDatabase, study: StudyRecord) -> None:
        database.set_state(study, StudyState.FAILED, error="the images are gone")
        assert database.study("first").error == "the images are gone"
        database.set_state(study, StudyState.RUNNING)
        assert database.study("first").error is None

    # Stages

    def test_a_stage_is_recorded_once(self, database: StudyDatabase, study: StudyRecord, stage: StageRecord) -> None:
        assert stage == StageRecord(stage.id, 0, "layer 3", "sha256:domain")
        assert database.stage(study, 0, "layer 3", "sha256:domain") == stage
        assert database.stages(study) == [stage]

    @pytest.mark.parametrize(("name", "domain"), [("layer 3", "sha256:other"), ("layer 4", "sha256:domain")])
    @pytest.mark.usefixtures("stage")
    def test_a_stage_keeps_its_domain(
        self, database: StudyDatabase, study: StudyRecord, name: str, domain: str
    ) -> None:
        with pytest.raises(StudyConflictError, match="must search the domain that it began with"):
            database.stage(study, 0, name, domain)

    def test_stages_come_in_order_and_apart(self, database: StudyDatabase, study: StudyRecord) -> None:
        other = database.add_study(make_definition("second"))
        for owner, index in ((study, 1), (other, 0), (study, 0)):
            database.stage(owner, index, f"layer {index}", "sha256:d")
        assert [stage.index for stage in database.stages(study)] == [0, 1]
        assert [stage.index for stage in database.stages(other)] == [0]

    def test_a_decision_comes_back_bit_for_bit(
        self, database: StudyDatabase, study: StudyRecord, stage: StageRecord
    ) -> None:
        database.decide(stage, DECISION)
        database.decide(stage, DECISION)
        assert database.stages(study)[0].decision == DECISION
        assert database.stage(study, 0, "layer 3", "sha256:domain").decision == DECISION

    @pytest.mark.parametrize(
        "change", [{"candidate": 20}, {"score": 0.5}, {"keep_rates": (1.0, 1.0, 1.0, 0.1)}, {"objective": 0.0}]
    )
    def test_another_decision_is_refused(
        self, database: StudyDatabase, study: StudyRecord, stage: StageRecord, change: dict[str, object]
    ) -> None:
        database.decide(stage, DECISION)
        with pytest.raises(DatabaseError, match="the decision must not change once recorded"):
            database.decide(stage, dataclasses.replace(DECISION, **change))  # type: ignore[arg-type]
        assert database.stages(study)[0].decision == DECISION

    def test_a_decision_of_another_stage_is_refused(self, database: StudyDatabase, stage: StageRecord) -> None:
        with pytest.raises(DatabaseError, match="must be of its stage"):
            database.decide(stage, dataclasses.replace(DECISION, stage=1))

    # Trials

    def test_a_trial_runs_and_completes(self, database: StudyDatabase, stage: StageRecord) -> None:
        database.begin_trial(stage, 0, 21, RATES, "sha256:key")
        assert database.trials(stage) == [TrialRecord(0, 21, RATES, "sha256:key")]
        database.finish_trial(stage, 0, FIGURES)
        (trial,) = database.trials(stage)
        assert trial == TrialRecord(0, 21, RATES, "sha256:key", FIGURES)

    def test_the_same_trial_again_changes_nothing(self, database: StudyDatabase, stage: StageRecord) -> None:
        for _ in range(2):
            database.begin_trial(stage, 0, 21, list(RATES), "sha256:key")
        for _ in range(2):
            database.finish_trial(stage, 0, FIGURES)
        database.begin_trial(stage, 0, 21, RATES, "sha256:key")
        assert [trial.figures for trial in database.trials(stage)] == [FIGURES]

    @pytest.mark.parametrize(
        "asked", [(20, RATES, "sha256:key"), (21, (*RATES[:-1], 0.2), "sha256:key"), (21, RATES, "sha256:other")]
    )
    def test_another_trial_of_that_number_is_refused(
        self, database: StudyDatabase, stage: StageRecord, asked: tuple[int, tuple[float, ...], str]
    ) -> None:
        database.begin_trial(stage, 0, 21, RATES, "sha256:key")
        with pytest.raises(DatabaseError, match=r"the candidate must not change once recorded.*'layer 3', trial 0"):
            database.begin_trial(stage, 0, *asked)

    @pytest.mark.parametrize("figure", MEASURED)
    def test_other_figures_are_refused(self, database: StudyDatabase, stage: StageRecord, figure: str) -> None:
        database.begin_trial(stage, 0, 21, RATES, "sha256:key")
        database.finish_trial(stage, 0, FIGURES)
        other = dataclasses.replace(FIGURES, **{figure: math.nextafter(getattr(FIGURES, figure), 2)})
        with pytest.raises(DatabaseError, match="the figures must not change once recorded"):
            database.finish_trial(stage, 0, other)
        assert database.trials(stage)[0] == TrialRecord(0, 21, RATES, "sha256:key", FIGURES)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("figure", MEASURED)
    def test_figures_are_finite(self, database: StudyDatabase, stage: StageRecord, figure: str, value: float) -> None:
        database.begin_trial(stage, 0, 21, RATES, "sha256:key")
        with pytest.raises(DatabaseError, match=f"recorded {figure} must be a finite number"):
            database.finish_trial(stage, 0, dataclasses.replace(FIGURES, **{figure: value}))
        assert database.trials(stage)[0].figures is None

    def test_a_stopped_trial_keeps_how_far_it_was_read(self, database: StudyDatabase, stage: StageRecord) -> None:
        database.begin_trial(stage, 0, 21, RATES, "sha256:key")
        stopped = dataclasses.replace(FIGURES, samples=16)
        database.finish_trial(stage, 0, stopped)
        assert database.trials(stage)[0].figures == stopped
        with pytest.raises(DatabaseError, match="the figures must not change once recorded"):
            database.finish_trial(stage, 0, FIGURES)

    @pytest.mark.parametrize("samples", [0, 41])
    def test_a_trial_reads_some_samples_and_not_more_than_there_are(
        self, database: StudyDatabase, stage: StageRecord, samples: int
    ) -> None:
        database.begin_trial(stage, 0, 21, RATES, "sha256:key")
        with pytest.raises(DatabaseError, match="reads 1 to 40 samples"):
            database.finish_trial(stage, 0, dataclasses.replace(FIGURES, samples=samples))

    def test_a_trial_is_begun_before_it_is_finished(self, database: StudyDatabase, stage: StageRecord) -> None:
        with pytest.raises(DatabaseError, match="begun before it is finished"):
            database.finish_trial(stage, 3, FIGURES)

    def test_trials_come_by_number(self, database: StudyDatabase, study: StudyRecord, stage: StageRecord) -> None:
        other = database.stage(study, 1, "layer 6", "sha256:domain")
        for owner, number in ((stage, 2), (other, 0), (stage, 0), (stage, 1)):
            database.begin_trial(owner, number, number, RATES, "sha256:key")
        assert [trial.number for trial in database.trials(stage)] == [0, 1, 2]

    def test_a_trial_of_a_stage_that_is_not_recorded_is_refused(self, database: StudyDatabase) -> None:
        with pytest.raises(DatabaseError):
            database.begin_trial(StageRecord(99, 0, "layer 3", "sha256:d"), 0, 21, RATES, "sha256:key")

    # Evaluations

    def test_an_evaluation_has_one_identity(self, database: StudyDatabase, evaluation: int) -> None:
        assert database.evaluation("sha256:key", "search", "sha256:data", REDUCTION, 4) == evaluation
        assert database.evaluation("sha256:other", "search", "sha256:data", REDUCTION, 4) != evaluation

    def test_other_rates_with_equal_counts_share_it(self, database: StudyDatabase, evaluation: int) -> None:
        close = dataclasses.replace(REDUCTION, keep_rates=(1.0, 1.0, 0.3333, 0.1))
        assert database.evaluation("sha256:key", "validation", "sha256:data", close, 4) == evaluation

    def test_an_evaluation_with_an_entry_rule_is_recorded(self, database: StudyDatabase) -> None:
        entry = Reduction((0.5, 0.5), make_rule("fastv"), make_rule("random"))
        assert database.evaluation("sha256:entry", "search", "sha256:data", entry, 4) > 0

    @pytest.mark.parametrize(("digest", "chunks"), [("sha256:other", 4), ("sha256:data", 5)])
    @pytest.mark.usefixtures("evaluation")
    def test_other_data_under_the_same_key_is_refused(self, database: StudyDatabase, digest: str, chunks: int) -> None:
        with pytest.raises(DatabaseError, match="the split must not change once recorded"):
            database.evaluation("sha256:key", "search", digest, REDUCTION, chunks)

    @given(chunks=st.dictionaries(st.integers(0, 3), st.lists(st.floats(0, 1), min_size=1, max_size=40), min_size=1))
    @settings(max_examples=25, deadline=None, suppress_health_check=_SHARED)
    def test_chunks_come_back_bit_for_bit(self, database: StudyDatabase, chunks: dict[int, list[float]]) -> None:
        # A new key for every example, since the database is the same for all of them.
        evaluation = database.evaluation(f"sha256:{uuid.uuid4()}", "search", "sha256:data", REDUCTION, 4)
        for _ in range(2):
            for chunk, scores in chunks.items():
                database.add_chunk(evaluation, chunk, scores)
        recorded = database.chunk_scores(evaluation)
        assert {chunk: [score.hex() for score in scores] for chunk, scores in recorded.items()} == {
            chunk: [abs(score).hex() for score in scores] for chunk, scores in chunks.items()
        }
        assert list(recorded) == sorted(recorded)

    @pytest.mark.parametrize("scores", [[0.5, 0.25], [0.25, 0.5, 0.0], [0.25, math.nextafter(0.5, 1)], [0.25]])
    def test_other_scores_of_a_chunk_are_refused(
        self, database: StudyDatabase, evaluation: int, scores: list[float]
    ) -> None:
        database.add_chunk(evaluation, 1, [0.25, 0.5])
        with pytest.raises(DatabaseError, match=r"the scores must not change once recorded.*chunk 1.*not repeatable"):
            database.add_chunk(evaluation, 1, scores)
        assert database.chunk_scores(evaluation) == {1: (0.25, 0.5)}

    @pytest.mark.parametrize("scores", [[], [math.nan], [1.0000001], [-0.1], [0.5, math.inf]])
    def test_impossible_scores_are_refused(self, database: StudyDatabase, evaluation: int, scores: list[float]) -> None:
        with pytest.raises(DatabaseError, match="score"):
            database.add_chunk(evaluation, 0, scores)
        assert database.chunk_scores(evaluation) == {}

    @pytest.mark.parametrize("chunk", [-1, 4])
    def test_a_chunk_that_does_not_exist_is_refused(self, database: StudyDatabase, evaluation: int, chunk: int) -> None:
        with pytest.raises(DatabaseError, match="has 4 chunks"):
            database.add_chunk(evaluation, chunk, [1.0])

    def test_a_chunk_without_evaluation_is_refused(self, database: StudyDatabase) -> None:
        with pytest.raises(DatabaseError, match="must still be in the database"):
            database.add_chunk(99, 0, [1.0])

    # The database as a whole

    def test_opening_again_keeps_everything(self, database: StudyDatabase, study: StudyRecord, url: str) -> None:
        with StudyDatabase.open(url) as again:
            assert again.studies() == [study]
        assert database.studies() == [study]

    def test_a_refused_write_leaves_no_trace(
        self, database: StudyDatabase, study: StudyRecord, stage: StageRecord
    ) -> None:
        database.begin_trial(stage, 0, 21, RATES, "sha256:key")
        with pytest.raises(DatabaseError):
            database.begin_trial(dataclasses.replace(stage, id=99), 1, 2, RATES, "sha256:key")
        assert len(database.trials(stage)) == 1
        assert database.stages(study) == [stage]


def _way_to(state: StudyState) -> list[StudyState]:
    if state is StudyState.QUEUED:
        return []
    return [StudyState.RUNNING] if state is StudyState.RUNNING else [StudyState.RUNNING, state]
