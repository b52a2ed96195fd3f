from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from scheduler_search.coordinator import StageDecided, TrialFinished, run_study
from scheduler_search.coordinator.events import Event
from scheduler_search.errors import DataError
from scheduler_search.export import searched_reduction
from scheduler_search.rule import Place
from scheduler_search.storage import StudyDatabase, optuna_storage
from scheduler_search.study import StudyDefinition
from scheduler_search.study.states import StudyState
from scheduler_search.study.values import ChunkResult
from tests.coordinator.simulated import LAYERS, TOWER, SimulatedExecutor


def definition(name: str = "simulated", rule: dict[str, object] | None = None, **search: object) -> StudyDefinition:
    settings: dict[str, object] = {"stride": 5, "initial": 3, "iterations": 4, **search}
    if settings.get("algorithm", "g-search") != "g-search":
        del settings["stride"]
    return StudyDefinition.model_validate(
        {
            "name": name,
            "model": {"id": "testbed:tiny-llava"},
            "data": {"source": "testbed", "search": {"samples": 40}, "validation": {"samples": 40}},
            "search": settings,
            "rule": rule or {},
        }
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[StudyDatabase]:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


def snapshot(database: StudyDatabase, name: str) -> list[object]:
    """Everything that must not depend on interruptions."""
    study = database.study(name)
    return [
        (stage.name, stage.domain_digest, stage.decision, database.trials(stage)) for stage in database.stages(study)
    ]


def optuna_trials(database: StudyDatabase, name: str) -> list[object]:
    storage = optuna_storage(database)
    summaries = optuna.get_all_study_summaries(storage)
    return [
        (summary.study_name, trial.number, trial.state.name, trial.params, trial.value)
        for summary in sorted(summaries, key=lambda summary: summary.study_name)
        if summary.study_name.startswith(f"{name}/")
        for trial in optuna.load_study(study_name=summary.study_name, storage=storage).trials
    ]


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


class DyingExecutor(SimulatedExecutor):
    """Dies after a number of chunks."""

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self._left = chunks

    def run(self, tasks: object) -> Iterator[ChunkResult]:
        for result in super().run(tasks):  # type: ignore[arg-type]
            if self._left == 0:
                raise Killed
            self._left -= 1
            yield result


@pytest.mark.parametrize("algorithm", ["g-search", "p-sigmoid"])
def test_a_study_runs_to_its_decisions(database: StudyDatabase, algorithm: str) -> None:
    settings = {"algorithm": algorithm} | ({"budget": 0.3} if algorithm == "p-sigmoid" else {})
    study = database.add_study(definition(**settings))
    events: list[Event] = []
    reduction = run_study(database, study, SimulatedExecutor(), events.append)
    assert len(reduction.keep_rates) == LAYERS
    assert database.study(study.name).state is StudyState.FINISHED
    decided = [event.decision for event in events if isinstance(event, StageDecided)]
    assert decided[-1].keep_rates == reduction.keep_rates
    assert any(isinstance(event, TrialFinished) for event in events)


@pytest.mark.parametrize(
    ("places", "stages"),
    [
        (["entry"], ["entry"]),
        (["vision"], ["tower-02", "tower-05"]),
        (["vision", "entry", "decoder"], ["tower-02", "tower-05", "entry", "layer-03", "layer-08"]),
    ],
)
def test_a_study_over_other_places(
    database: StudyDatabase, tower_rule: str, places: list[Place], stages: list[str]
) -> None:
    settings = {"penalty": 0.3, "sampler": "random"} | ({"vision_stride": 3} if "vision" in places else {})
    study = database.add_study(definition(rule={"name": tower_rule, "at": places}, **settings))
    executor = SimulatedExecutor(tower=TOWER)
    reduction = run_study(database, study, executor)
    recorded = database.stages(study)
    assert [stage.name for stage in recorded] == stages
    last = recorded[-1].decision
    assert last is not None
    assert last.keep_rates[-LAYERS:] == reduction.keep_rates
    assert last.keep_rates[:-LAYERS] == reduction.tower_rates
    assert reduction.keep_rates[-1] < 1.0
    assert reduction == searched_reduction(database, database.study(study.name))
    anchor = database.trials(recorded[0])[0]
    assert anchor.keep_rates == (1.0,) * len(last.keep_rates)
    for task in executor.executed:
        acting = (task.reduction.vision is not None, task.reduction.entry_rule is not None)
        assert acting <= ("vision" in places, "entry" in places)
        assert task.reduction.keep_rates[0] == 1.0 or any(acting)
        assert task.shared_layers == 0 or places[-1] == "decoder"


def test_the_score_on_the_search_split_falls_at_most_by_lambda(database: StudyDatabase) -> None:
    study = database.add_study(definition(penalty=0.05))
    executor = SimulatedExecutor()
    run_study(database, study, executor)
    first, *_, last = database.stages(study)
    unreduced = database.trials(first)[0].figures
    assert unreduced is not None
    assert last.decision is not None
    assert unreduced.score - last.decision.score <= 0.05 + 1e-12


def test_no_chunk_is_run_twice(database: StudyDatabase) -> None:
    executor = SimulatedExecutor()
    run_study(database, database.add_study(definition()), executor)
    seen = [(task.split, task.chunk, task.reduction.counts(16)) for task in executor.executed]
    assert len(seen) == len(set(seen))


def test_another_study_of_the_same_evaluations_runs_nothing(database: StudyDatabase) -> None:
    run_study(database, database.add_study(definition("one")), SimulatedExecutor())
    executor = SimulatedExecutor()
    first = run_study(database, database.add_study(definition("two")), executor)
    assert executor.executed == []
    assert first.keep_rates == database.stages(database.study("one"))[-1].decision.keep_rates  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["expected-improvement", "random", "tpe", "gp"])
def test_a_study_killed_after_any_chunk_continues_exactly(tmp_path: Path, sampler: str) -> None:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/undisturbed.db") as database:
        study = database.add_study(definition(sampler=sampler))
        undisturbed = SimulatedExecutor()
        run_study(database, study, undisturbed)
        expected, expected_optuna = snapshot(database, study.name), optuna_trials(database, study.name)
    total = len(undisturbed.executed)
    with StudyDatabase.open(f"sqlite:///{tmp_path}/killed.db") as database:
        study = database.add_study(definition(sampler=sampler))
        executed = 0
        for chunks in (0, 1, 2, 3, total):
            executor = DyingExecutor(chunks)
            try:
                run_study(database, study, executor)
            except Killed:
                # what was in flight is lost, and nothing else
                executed += len(executor.executed) - 1
            else:
                executed += len(executor.executed)
        assert snapshot(database, study.name) == expected
        assert optuna_trials(database, study.name) == expected_optuna
        assert executed == total


def test_an_interrupt_leaves_a_resumable_study(database: StudyDatabase) -> None:
    class Interrupted(SimulatedExecutor):
        def run(self, tasks: object) -> Iterator[ChunkResult]:
            yield from super().run(tasks)  # type: ignore[arg-type]
            if len(self.executed) > 8:
                raise KeyboardInterrupt

    study = database.add_study(definition())
    with pytest.raises(KeyboardInterrupt):
        run_study(database, study, Interrupted())
    assert database.study(study.name).state is StudyState.INTERRUPTED
    run_study(database, study, SimulatedExecutor())
    assert database.study(study.name).state is StudyState.FINISHED


def test_a_failure_is_recorded_with_its_reason(database: StudyDatabase) -> None:
    class Failing(SimulatedExecutor):
        def run(self, tasks: object) -> Iterator[ChunkResult]:
            del tasks
            raise DataError("an image must be readable", place="image 7")

    study = database.add_study(definition())
    with pytest.raises(DataError):
        run_study(database, study, Failing())
    recorded = database.study(study.name)
    assert recorded.state is StudyState.FAILED
    assert recorded.error == "an image must be readable (in image 7)"


def test_an_edited_history_is_refused(database: StudyDatabase) -> None:
    from scheduler_search.errors import DatabaseError

    study = database.add_study(definition())
    with pytest.raises(Killed):
        run_study(database, study, DyingExecutor(0))
    stage = database.stages(study)[0]
    database.begin_trial(stage, 1, 0, (1.0,) * LAYERS, "sha256:" + "0" * 64)
    with pytest.raises(DatabaseError, match="recorded history"):
        run_study(database, study, SimulatedExecutor())


@pytest.mark.parametrize("algorithm", ["g-search", "p-sigmoid"])
def test_tasks_say_which_layers_their_stage_shares(database: StudyDatabase, algorithm: str) -> None:
    budget = {"budget": 0.5} if algorithm == "p-sigmoid" else {}
    executor = SimulatedExecutor()
    run_study(database, database.add_study(definition(algorithm=algorithm, **budget)), executor)
    hints = [task.shared_layers for task in executor.executed]
    assert hints == sorted(hints)
    assert set(hints) <= {2, 7} if algorithm == "g-search" else set(hints) == {2}
    assert hints[0] == 2
    for task in executor.executed:
        assert all(rate == 1.0 for rate in task.reduction.keep_rates[:2])
