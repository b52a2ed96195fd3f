"""A daemon on simulated models: what it takes first, and what a study that fails does to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scheduler_search.coordinator import Daemon, daemon, make_algorithm
from scheduler_search.coordinator.events import Event, Listener, TrialFinished
from scheduler_search.errors import ClusterError, DataError, WorkerError
from scheduler_search.search import Algorithm
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import StudyDefinition
from scheduler_search.study.states import StudyRecord, StudyState
from scheduler_search.study.values import Executor
from tests.coordinator.simulated import SimulatedExecutor
from tests.coordinator.test_run import definition

NO_CLUSTER = ClusterError("a Ray cluster must answer at its address", actual="nobody", remedy="start one")
MISSING = DataError("a data file must exist", actual="no such file", place="/nowhere/data.jsonl")


def small(name: str) -> StudyDefinition:
    return definition(name=name, stride=9, initial=1, iterations=1)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[StudyDatabase]:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


class Workplace:
    """A daemon, what it said, and which of its studies cannot be run."""

    def __init__(self, database: StudyDatabase) -> None:
        self.failures: dict[str, Exception] = {}
        self.said: list[str] = []
        self.open_executors = 0
        self.on_event: Callable[[StudyRecord, Event], None] = lambda study, event: None  # noqa: ARG005
        self.stopped = False
        self.check: Callable[[], None] = lambda: None
        self.daemon = Daemon(
            database, self.prepare, self.watch, lambda: self.stopped, self.said.append, lambda: self.check()
        )

    def prepare(self, study: StudyDefinition) -> tuple[Executor, Algorithm]:
        if study.name in self.failures:
            raise self.failures[study.name]
        executor = SimulatedExecutor(samples=20)
        self.open_executors += 1
        executor.close = self.close  # type: ignore[method-assign]
        return executor, make_algorithm(study, executor)

    def close(self) -> None:
        self.open_executors -= 1

    @contextmanager
    def watch(self, study: StudyRecord, _algorithm: Algorithm) -> Iterator[Listener]:
        yield lambda event: self.on_event(study, event)

    @property
    def taken(self) -> list[str]:
        return [line.split()[1].rstrip(":") for line in self.said if "taken up" in line]


@pytest.fixture
def workplace(database: StudyDatabase) -> Workplace:
    return Workplace(database)


@pytest.mark.slow
def test_studies_are_run_by_priority_and_then_by_age(database: StudyDatabase, workplace: Workplace) -> None:
    for name, priority in (("first", 0), ("urgent", 5), ("second", 0), ("never-mind", -1)):
        database.submit(small(name), priority)
    workplace.daemon.run(once=True)
    assert workplace.taken == ["urgent", "first", "second", "never-mind"]
    assert {study.state for study in database.studies()} == {StudyState.FINISHED}
    assert workplace.open_executors == 0


@pytest.mark.slow
@pytest.mark.parametrize("error", [MISSING, RuntimeError("CUDA error: out of luck")], ids=["ours", "another's"])
def test_a_study_that_fails_is_tried_three_times_and_blocks_nobody(
    database: StudyDatabase, workplace: Workplace, error: Exception
) -> None:
    database.submit(small("poison"), 9)
    database.submit(small("healthy"))
    workplace.failures["poison"] = error
    workplace.daemon.run(once=True)
    # Others come before a second attempt, whatever their priority.
    assert workplace.taken == ["poison", "healthy", "poison", "poison"]
    poison = database.study("poison")
    assert (poison.state, poison.attempts) == (StudyState.FAILED, 3)
    assert str(error.args[0]) in (poison.error or "")
    assert "in prepare" in (poison.traceback or "")
    assert database.study("healthy").state is StudyState.FINISHED
    errors = [line.text for line in database.logs(poison) if line.level == "error"]
    assert len(errors) == 3
    assert sum("given up" in line for line in workplace.said) == 1
    # Once more, when the reason is gone.
    workplace.failures.clear()
    database.retry(poison)
    workplace.daemon.run(once=True)
    assert database.study("poison").state is StudyState.FINISHED
    assert database.study("poison").error is None


@pytest.mark.slow
def test_a_failure_on_one_machine_is_none_on_another(database: StudyDatabase, workplace: Workplace) -> None:
    database.submit(small("elsewhere"))
    workplace.failures["elsewhere"] = MISSING
    other = Workplace(database)

    def stop_at_the_first_failure(line: str) -> None:
        workplace.stopped = "failed" in line

    Daemon(database, workplace.prepare, workplace.watch, lambda: workplace.stopped, stop_at_the_first_failure).run(
        once=True
    )
    queued = database.study("elsewhere")
    assert (queued.state, queued.attempts, queued.owner) == (StudyState.QUEUED, 1, None)
    assert "/nowhere/data.jsonl" in (queued.error or "")
    other.daemon.run(once=True)
    assert other.taken == ["elsewhere"]
    assert database.study("elsewhere").state is StudyState.FINISHED


def test_a_stop_puts_the_study_back_without_counting_an_attempt(database: StudyDatabase, workplace: Workplace) -> None:
    database.submit(small("long"))
    database.submit(small("next"))

    def stop(_study: StudyRecord, event: Event) -> None:
        workplace.stopped = workplace.stopped or isinstance(event, TrialFinished)

    workplace.on_event = stop
    workplace.daemon.run()
    study = database.study("long")
    assert (study.state, study.attempts, study.owner) == (StudyState.QUEUED, 0, None)
    assert workplace.taken == ["long"]
    assert workplace.open_executors == 0
    assert workplace.said[-1] == "study long: stopped, back in the queue"


@pytest.mark.slow
def test_a_cancelled_study_stops_and_the_next_one_is_run(database: StudyDatabase, workplace: Workplace) -> None:
    database.submit(small("unwanted"), 1)
    database.submit(small("wanted"))

    def cancel(study: StudyRecord, event: Event) -> None:
        if study.name == "unwanted" and isinstance(event, TrialFinished):
            with StudyDatabase.open(database.url.render_as_string()) as other:
                other.cancel(study)

    workplace.on_event = cancel
    workplace.daemon.run(once=True)
    assert workplace.taken == ["unwanted", "wanted"]
    assert database.study("unwanted").state is StudyState.CANCELLED
    assert database.study("wanted").state is StudyState.FINISHED
    assert any("a study that was cancelled" in line for line in workplace.said)


@pytest.mark.slow
def test_the_log_has_a_line_per_stage_and_none_per_trial(database: StudyDatabase, workplace: Workplace) -> None:
    study = database.submit(small("logged"))
    trials: list[Event] = []
    workplace.on_event = lambda _, event: trials.append(event) if isinstance(event, TrialFinished) else None
    workplace.daemon.run(once=True)
    lines = [line.text for line in database.logs(study)]
    stages = database.stages(study)
    for stage in stages:
        assert sum(line.startswith(f"{stage.name}: begins") for line in lines) == 1
        assert sum(line.startswith(f"{stage.name}: keep_rate") for line in lines) == 1
    assert lines[-1] == "finished"
    assert len(lines) == 2 * len(stages) + 2
    assert len(trials) > len(stages)


def test_a_missing_cluster_costs_a_study_no_attempt(database: StudyDatabase, workplace: Workplace) -> None:
    database.submit(small("clusterless"), 9)
    database.submit(small("local"))
    workplace.failures["clusterless"] = NO_CLUSTER
    with pytest.raises(ClusterError, match="must answer at its address"):
        workplace.daemon.run(once=True)
    # Once is enough to know, and others are run all the same.
    assert workplace.taken == ["clusterless", "local"]
    study = database.study("clusterless")
    assert (study.state, study.attempts, study.owner, study.error) == (StudyState.QUEUED, 0, None, None)
    assert any(str(NO_CLUSTER) in line.text for line in database.logs(study))
    assert any(line.startswith("study clusterless: back in the queue: ") for line in workplace.said)
    assert database.study("local").state is StudyState.FINISHED


def test_workers_that_all_fail_cost_an_attempt(database: StudyDatabase, workplace: Workplace) -> None:
    database.submit(small("poison"))
    workplace.failures["poison"] = WorkerError("a chunk must run on some worker")
    workplace.daemon.run(once=True)
    assert database.study("poison").attempts == 3
    assert database.study("poison").state is StudyState.FAILED


def test_studies_are_not_taken_up_while_the_cluster_of_all_is_missing(
    database: StudyDatabase, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "CLUSTER_SECONDS", 0.0)
    study = database.submit(small("waits"))
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        workplace.stopped = calls == 3
        raise NO_CLUSTER

    workplace.check = check
    workplace.daemon.run(idle_seconds=0.0)
    assert calls == 3
    assert workplace.said == [f"no study is taken up: {NO_CLUSTER}"]
    workplace.stopped, calls = False, 9
    with pytest.raises(ClusterError):
        workplace.daemon.run(once=True)
    assert database.logs(study) == []
    workplace.check = lambda: None
    workplace.daemon.run(once=True)
    assert database.study("waits").state is StudyState.FINISHED


def test_a_study_whose_cluster_is_missing_is_left_for_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(daemon.time, "monotonic", lambda: now)
    left = daemon._Clusterless()
    left.check()
    waited = []
    for _ in range(8):
        left.add("study", daemon.ClusterMissing("away"))
        start = now
        while left.names(forever=False):
            now += 1.0
        waited.append(now - start)
    assert waited == [15.0, 30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    assert left.names(forever=True) == {"study"}
