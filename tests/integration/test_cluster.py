"""Chunks on a real cluster of several nodes: whatever happens to workers and nodes, results are those of one process.

What workers run is simulated, so that it starts quickly and fails when a test wants; ``test_cluster_study`` runs the
testbed model on the same kind of cluster.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from scheduler_search.cluster import (
    Progress,
    RayExecutor,
    WorkerEvent,
    WorkerJoined,
    WorkerLogged,
    WorkerLost,
    asking,
    connect,
    pool,
)
from scheduler_search.cluster.dispatch import DEPTH
from scheduler_search.errors import ClusterError, DataError, ModelError, WorkerError
from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction
from scheduler_search.study import StudyDefinition
from scheduler_search.study.values import ChunkTask
from tests.cluster.executors import Faulty, left, plant, ran
from tests.cluster.nodes import Nodes, nodes
from tests.coordinator.simulated import LAYERS, SimulatedExecutor

pytestmark = pytest.mark.slow

SAMPLES = 40
RULE = make_rule("attention-rank", {})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Two nodes with room for one worker each."""
    with nodes(cpus=1) as found:
        found.add()
        with connect(found.address):
            yield found


def definition(**workers: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "name": "clustered",
            "model": {"id": "testbed:tiny-llava", "device": "cpu"},
            "data": {"source": "testbed", "search": {"samples": SAMPLES}},
            "workers": workers,
        }
    )


def tasks(reductions: int = 2) -> list[ChunkTask]:
    rates = [(1.0, *[1.0 / (number + 1)] * (LAYERS - 1)) for number in range(reductions)]
    return [ChunkTask("search", chunk, Reduction(one, RULE), 1, 2) for chunk in range(10) for one in rates]


EXPECTED = {
    result.task: result.scores for result in SimulatedExecutor(samples=SAMPLES, chunk_size=4).run(iter(tasks()))
}


class Study:
    """An executor, and what it told."""

    def __init__(self, make: Faulty, patience: float = 60.0, **workers: object) -> None:
        self.events: list[WorkerEvent] = []
        self.executor = RayExecutor(definition(**workers), report=self.events.append, make=make, patience=patience)

    def scores(self, work: list[ChunkTask]) -> dict[ChunkTask, tuple[float, ...]]:
        found = {}
        for result in self.executor.run(iter(work)):
            assert result.task not in found
            found[result.task] = result.scores
        return found

    def workers(self, wanted: int) -> None:
        """Wait for so many workers."""
        end = time.monotonic() + 60
        while len(self.of(WorkerJoined)) - len(self.lost_ready) < wanted:
            assert time.monotonic() < end, self.events
            self.executor.step(0.1)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def lost_ready(self) -> list[WorkerLost]:
        joined = {event.worker for event in self.of(WorkerJoined)}
        return [event for event in self.of(WorkerLost) if event.worker in joined]


@pytest.fixture
def studies(cluster: Nodes) -> Iterator[list[Study]]:
    """Studies of a test, closed after it."""
    del cluster
    made: list[Study] = []
    yield made
    for study in made:
        study.executor.close()


def begin(studies: list[Study], folder: Path, seconds: float = 0.0, patience: float = 60.0, **workers: object) -> Study:
    studies.append(Study(Faulty(folder, seconds), patience, **workers))
    return studies[-1]


def test_two_workers_share_the_chunks(studies: list[Study], tmp_path: Path) -> None:
    study = begin(studies, tmp_path, seconds=0.02, threads=1)
    assert study.executor.model() == SimulatedExecutor().model()
    assert study.executor.split("search") == SimulatedExecutor(samples=SAMPLES, chunk_size=4).split("search")
    assert study.executor.context("search") == {"split": "search"}
    study.workers(2)
    assert study.scores(tasks()) == EXPECTED
    assert len({process for process, _ in ran(tmp_path)}) == 2
    assert len(ran(tmp_path)) >= len(EXPECTED), "one that is taken back too late is run twice"
    assert (tmp_path / "ran.txt").read_text().splitlines()[0].endswith("1 2"), "hints travel with the task"
    assert (tmp_path / "threads.txt").read_text() == "1"
    progress = study.of(Progress)[-1]
    assert (progress.workers, progress.chunks, progress.device_bytes) == (2, len(EXPECTED), 1001)
    assert study.executor.prefill_milliseconds("search", [tasks()[0].reduction]) == (13.0,)


def test_what_is_asked_for_next_depends_on_results(studies: list[Study], tmp_path: Path) -> None:
    """Of tasks that never end, few more are taken than results are read; a run that is left leaves nothing behind."""
    study = begin(studies, tmp_path, count=1)
    taken = 0

    def endless() -> Iterator[ChunkTask]:
        nonlocal taken
        while True:
            for task in tasks():
                taken += 1
                yield task

    run = study.executor.run(endless())
    for number in range(10):
        next(run)
        assert taken - number <= DEPTH + 1
    run.close()
    assert study.scores(tasks()) == EXPECTED


def test_a_killed_worker_is_replaced(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "die-3", 2)
    study = begin(studies, tmp_path, seconds=0.02)
    assert study.scores(tasks()) == EXPECTED
    assert left(tmp_path, "die-3") == 0
    assert len(study.lost_ready) == 2
    study.workers(2)


def test_a_chunk_that_kills_every_worker_stops_the_study(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "die-3", 20)
    # A chunk must take its time: of one that ends a moment before its worker does, the answer may be lost.
    study = begin(studies, tmp_path, seconds=0.05, attempts=2, count=1)
    with pytest.raises(WorkerError, match="chunk 3 of the search split"):
        study.scores(tasks(1))
    assert left(tmp_path, "die-3") == 18


def test_an_error_in_a_chunk_is_tried_elsewhere_and_logged(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "raise-2", 2)
    plant(tmp_path, "exhaust-4")
    plant(tmp_path, "warn-5")
    study = begin(studies, tmp_path)
    study.executor.model()
    study.workers(2)
    assert study.scores(tasks()) == EXPECTED
    # What was run although it had been taken back is told with a later answer.
    assert study.scores(tasks()) == EXPECTED
    logged = study.of(WorkerLogged)
    assert sum("chunk 2 is cursed" in event.text for event in logged if event.level == "error") == 2
    assert [event.level for event in logged if "chunk 5 is odd" in event.text] == ["warning"]
    assert any("MemoryError" in event.text for event in logged)
    assert not study.of(WorkerLost)


def test_an_error_that_stays_is_raised_as_it_is(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "refuse-2", 20)
    study = begin(studies, tmp_path, count=1)
    with pytest.raises(ModelError, match=r"a chunk must fit .*chunk 2"):
        study.scores(tasks(1))
    assert left(tmp_path, "refuse-2") == 17
    plant(tmp_path, "refuse-2", 0)


def test_a_foreign_error_that_stays_names_the_chunk_and_its_cause(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "raise-1", 20)
    study = begin(studies, tmp_path, attempts=1, count=1)
    with pytest.raises(WorkerError, match=r"ValueError: chunk 1 is cursed \(in chunk 1 of the search split"):
        study.scores(tasks(1))


def test_a_worker_that_hangs_is_ended(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "hang-4")
    study = begin(studies, tmp_path, chunk_timeout=1.0)
    assert study.scores(tasks()) == EXPECTED
    (lost,) = study.lost_ready
    assert "longer than 1 s" in lost.reason


def test_a_worker_that_dies_idle_costs_no_chunk_an_attempt(studies: list[Study], tmp_path: Path) -> None:
    study = begin(studies, tmp_path, count=1, attempts=1)
    assert study.scores(tasks()) == EXPECTED
    os.kill(ran(tmp_path)[0][0], signal.SIGKILL)
    assert study.scores(tasks()) == EXPECTED
    assert len(study.lost_ready) == 1


def test_a_node_where_loading_fails_is_left_alone(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "refuse")
    study = begin(studies, tmp_path)
    assert study.scores(tasks()) == EXPECTED
    (lost,) = study.of(WorkerLost)
    assert "a model must be there" in lost.reason
    assert len({process for process, _ in ran(tmp_path)}) == 1


def test_a_worker_that_differs_is_refused_by_name(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "differ")
    study = begin(studies, tmp_path)
    study.executor.model()
    while not study.of(WorkerLost):
        study.executor.step(0.1)
    (lost,) = study.of(WorkerLost)
    assert "the same model with the same software" in lost.reason
    assert "device" in lost.reason
    assert lost.worker in lost.reason
    assert study.scores(tasks()) == EXPECTED


def test_what_no_node_can_load_is_raised_as_it_is(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "refuse", 20)
    with pytest.raises(ModelError, match="a model must be there"):
        begin(studies, tmp_path).executor.model()


def test_data_that_no_node_has_are_missed_as_in_one_process(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "no-data", 20)
    study = begin(studies, tmp_path)
    with pytest.raises(DataError, match="the study must have a validation split"):
        study.executor.split("validation")
    with pytest.raises(DataError, match="the data must be there"):
        study.executor.split("search")


def test_loading_that_fails_now_and_then_is_tried_again(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "raise")
    plant(tmp_path, "die")
    study = begin(studies, tmp_path)
    assert study.scores(tasks()) == EXPECTED
    assert len(study.of(WorkerLost)) == 2


def test_loading_that_always_fails_has_its_cause_told(studies: list[Study], tmp_path: Path) -> None:
    plant(tmp_path, "raise", 20)
    with pytest.raises(WorkerError, match="OSError: the disk is on fire"):
        begin(studies, tmp_path, attempts=1).executor.model()


def test_a_worker_that_no_node_can_hold(studies: list[Study], tmp_path: Path) -> None:
    study = begin(studies, tmp_path, cpus=3, patience=0.0)
    with pytest.raises(ClusterError, match="a worker needs 3 CPUs"):
        study.executor.model()


def test_nodes_come_and_go(cluster: Nodes, studies: list[Study], tmp_path: Path) -> None:
    """One joins while the study runs and gets its share; another is killed while it works."""
    study = begin(studies, tmp_path, seconds=0.1)
    taken: list[ChunkTask] = []

    def until_one_is_lost() -> Iterator[ChunkTask]:
        for task in tasks(40):
            if study.lost_ready:
                return
            taken.append(task)
            yield task

    run = study.executor.run(until_one_is_lost())
    found = [next(run)]
    third = cluster.add()
    while len(study.of(WorkerJoined)) < 3:
        found.append(next(run))
    cluster.remove(third)
    found += list(run)
    assert {one.task: one.scores for one in found} == {
        one.task: one.scores for one in SimulatedExecutor(samples=SAMPLES, chunk_size=4).run(taken)
    }
    assert len(found) == len(taken)
    assert len(study.lost_ready) == 1


def test_workers_wait_for_a_cluster_that_is_taken(
    monkeypatch: pytest.MonkeyPatch, studies: list[Study], tmp_path: Path
) -> None:
    monkeypatch.setattr(pool, "_SAY_SECONDS", 1.0)
    taken = ray.util.placement_group([{"CPU": 1}, {"CPU": 1}])
    ray.get(taken.ready())
    study = begin(studies, tmp_path)
    while not study.of(WorkerLogged):
        study.executor.step(0.5)
    assert study.of(WorkerLogged)[0].text.startswith("waiting for 1 CPUs; the cluster has nodes with")
    ray.util.remove_placement_group(taken)
    assert study.scores(tasks()) == EXPECTED


def test_a_placement_group_holds_all_workers(cluster: Nodes, tmp_path: Path) -> None:
    """Its first bundle is the driver's; the others hold a worker each, and no more are started elsewhere."""
    del cluster
    group = ray.util.placement_group([{"CPU": 0.25}, {"CPU": 0.5}, {"CPU": 0.5}])
    strategy = PlacementGroupSchedulingStrategy(group, 0)
    driver = ray.remote(in_a_group).options(num_cpus=0.25, scheduling_strategy=strategy)
    workers, scores = ray.get(driver.remote(tmp_path))
    assert workers == 2
    assert scores == EXPECTED
    ray.util.remove_placement_group(group)


def in_a_group(folder: Path) -> tuple[int, dict[ChunkTask, tuple[float, ...]]]:
    study = Study(Faulty(folder, 0.02), cpus=0.5)
    try:
        study.workers(2)
        for _ in range(3):
            study.executor.step(0.5)
        return len(study.of(WorkerJoined)), study.scores(tasks())
    finally:
        study.executor.close()


def test_the_head_dies(monkeypatch: pytest.MonkeyPatch, cluster: Nodes, studies: list[Study], tmp_path: Path) -> None:
    """The last test of this cluster. The process lives on, and can resume on another."""
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 3.0)
    study = begin(studies, tmp_path, seconds=0.2)
    run = study.executor.run(iter(tasks(40)))
    next(run)
    cluster.kill_head()
    with pytest.raises(ClusterError, match="resume the study when the cluster is back"):
        list(run)
