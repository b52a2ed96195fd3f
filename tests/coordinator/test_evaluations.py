from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from scheduler_search.coordinator import run_study
from scheduler_search.coordinator.evaluations import Evaluations, Request, Stopped
from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction
from scheduler_search.search import Race
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.values import ChunkResult, ChunkTask
from tests.coordinator.simulated import LAYERS, SimulatedExecutor
from tests.coordinator.test_run import definition, snapshot

CHUNKS = 10


@pytest.fixture
def database(tmp_path: Path) -> Iterator[StudyDatabase]:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


def keeping(count: int) -> Reduction:
    return Reduction((1.0, 1.0, *[count / 16] * (LAYERS - 2)), make_rule("attention-rank"))


def noisy(sample: int, counts: tuple[int, ...]) -> float:
    """In no order that the samples have: right with a probability that is the share of tokens kept."""
    return float(random.Random(f"{sample} {counts}").random() < counts[-1] / 16)


def executor() -> SimulatedExecutor:
    return SimulatedExecutor(noisy, samples=40 * CHUNKS, chunk_size=40)


class Ahead(SimulatedExecutor):
    """Takes several tasks before it gives the first result, and gives results in another order: workers at once."""

    def __init__(self, at_once: int) -> None:
        super().__init__(noisy, samples=40 * CHUNKS, chunk_size=40)
        self._at_once = at_once

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        waiting: list[ChunkTask] = []
        source = iter(tasks)
        while True:
            waiting += [task for _, task in zip(range(self._at_once - len(waiting)), source, strict=False)]
            if not waiting:
                return
            yield from super().run([waiting.pop(len(self.executed) % len(waiting))])


def race() -> Race:
    return Race(goal=0.9, total=40 * CHUNKS, level=0.001)


def test_a_race_that_is_given_up_runs_no_more_chunks(database: StudyDatabase) -> None:
    runner = executor()
    evaluations = Evaluations(database, runner)
    (scores,) = evaluations.read("search", [Request(keeping(4), race())])
    assert len(scores) == 40 * len(runner.executed) < 40 * CHUNKS
    assert scores == Evaluations(database, runner).scores("search", keeping(4))[: len(scores)]


@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_a_race_ends_where_it_would_end_without_workers_or_cache(database: StudyDatabase, at_once: int) -> None:
    (expected,) = Evaluations(database, executor()).read("search", [Request(keeping(6), race())])
    other = database.url.set(database=f"{database.url.database}.other")
    with StudyDatabase.open(other.render_as_string()) as empty:
        runner = Ahead(at_once)
        evaluations = Evaluations(empty, runner)
        (alone,) = evaluations.read("search", [Request(keeping(6), race())])
        assert alone == expected
        evaluations.scores("search", keeping(6))
        ran = len(runner.executed)
        assert ran == CHUNKS
        (cached,) = evaluations.read("search", [Request(keeping(6), race())])
        assert cached == expected
        assert len(runner.executed) == ran


def test_requests_are_read_side_by_side_and_end_apart(database: StudyDatabase) -> None:
    runner = Ahead(4)
    requests = [Request(keeping(2), race()), Request(keeping(16), race()), Request(keeping(12))]
    first, *others = Evaluations(database, runner).read("search", requests)
    assert len(first) < 40 * CHUNKS
    assert [len(scores) for scores in others] == [40 * CHUNKS] * 2
    for count in (16, 12):
        assert sum(task.reduction == keeping(count) for task in runner.executed) == CHUNKS


def test_chunks_that_are_read_from_the_database_are_counted(database: StudyDatabase) -> None:
    Evaluations(database, executor()).scores("search", keeping(6))
    assert (database.evaluation_totals().chunks, database.evaluation_totals().hits) == (CHUNKS, 0)
    for index in (1, 2):
        Evaluations(database, executor()).scores("search", keeping(6))
        assert (database.evaluation_totals().chunks, database.evaluation_totals().hits) == (CHUNKS, index * CHUNKS)


def test_only_chunks_that_count_are_hits(database: StudyDatabase) -> None:
    Evaluations(database, executor()).scores("search", keeping(2))
    (read,) = Evaluations(database, executor()).read("search", [Request(keeping(2), race())])
    assert len(read) < 40 * CHUNKS
    assert database.evaluation_totals().hits == len(read) // 40


def test_a_stop_keeps_what_was_in_flight(database: StudyDatabase) -> None:
    runner = Ahead(3)
    evaluations = Evaluations(database, runner, lambda: len(runner.executed) >= 2)
    with pytest.raises(Stopped):
        evaluations.scores("search", keeping(6))
    # Two were done when the stop was asked for, and two more were handed out with them.
    assert len(runner.executed) == database.evaluation_totals().chunks == 4


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_a_study_finds_the_same_whatever_the_executor(tmp_path: Path, batch: int) -> None:
    found = []
    for index, runner in enumerate((executor(), Ahead(5))):
        with StudyDatabase.open(f"sqlite:///{tmp_path}/{index}.db") as database:
            study = database.add_study(definition(batch=batch, penalty=0.3))
            run_study(database, study, runner)
            found.append(snapshot(database, study.name))
    assert found[0] == found[1]


@pytest.mark.slow
def test_another_studys_chunks_move_no_decision(tmp_path: Path) -> None:
    found = []
    for index, warm in enumerate((False, True)):
        with StudyDatabase.open(f"sqlite:///{tmp_path}/{index}.db") as database:
            if warm:
                full = definition("full", penalty=0.3, race_delta=0.0, tolerance=0.0, iterations=12)
                run_study(database, database.add_study(full), executor())
            runner = executor()
            run_study(database, database.add_study(definition(penalty=0.3)), runner)
            found.append((snapshot(database, "simulated"), len(runner.executed)))
    (cold, ran_cold), (warm_found, ran_warm) = found
    assert warm_found == cold
    assert ran_warm < ran_cold


@pytest.mark.slow
def test_races_save_chunks_and_keep_the_decision(tmp_path: Path) -> None:
    found = {}
    for delta in (0.0, 0.05):
        with StudyDatabase.open(f"sqlite:///{tmp_path}/{delta}.db") as database:
            runner = executor()
            # Every candidate of every stage is tried: what is left to differ is how far each is read.
            study = database.add_study(definition(penalty=0.3, race_delta=delta, tolerance=0.0, initial=17))
            reduction = run_study(database, study, runner)
            stopped = [
                trial
                for stage in database.stages(study)
                for trial in database.trials(stage)
                if trial.figures is not None and not trial.figures.complete
            ]
            found[delta] = (reduction, len(runner.executed), len(stopped))
    assert found[0.0][0] == found[0.05][0]
    assert found[0.05][1] < 0.8 * found[0.0][1]
    assert found[0.0][2] == 0 < found[0.05][2]
