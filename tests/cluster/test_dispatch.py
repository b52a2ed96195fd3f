"""Chunks go to workers by the laws of the module, whatever the workers do: no Ray, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.cluster.dispatch import DEPTH, Dispatch, Homes, Order, Unit
from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.values import ChunkTask

RULE = make_rule("attention-rank", {})


def reduction(number: int) -> Reduction:
    return Reduction((1.0, 1.0 / (number + 1)), RULE)


def tasks(chunks: int, reductions: int = 1) -> list[ChunkTask]:
    """In the order of the coordinator: chunk by chunk."""
    return [ChunkTask("search", chunk, reduction(one)) for chunk in range(chunks) for one in range(reductions)]


class Cluster:
    """Workers that do what a test says, and a check of every order that they get."""

    def __init__(self, work: list[ChunkTask], homes: Homes | None = None, workers: int = 0) -> None:
        self.taken = 0
        self.homes = homes or Homes()
        self.dispatch = Dispatch(self._counted(work), self.homes)
        self.queues: dict[str, list[Unit]] = {}
        self.done: Counter[ChunkTask] = Counter()
        self._names = count()
        for _ in range(workers):
            self.join()

    def _counted(self, work: list[ChunkTask]) -> Iterator[ChunkTask]:
        for task in work:
            self.taken += 1
            yield task

    def join(self) -> str:
        name = f"worker-{next(self._names)}"
        self.queues[name] = []
        self.dispatch.join(name)
        return name

    def assign(self) -> list[Order]:
        orders = self.dispatch.assign()
        for order in orders:
            if order.taken_from is not None:
                victim = self.queues[order.taken_from]
                assert victim.index(order.unit) > 0, "what a worker runs is its own"
                victim.remove(order.unit)
            assert order.unit not in [unit for queue in self.queues.values() for unit in queue]
            self.queues[order.worker].append(order.unit)
        assert all(len(queue) <= DEPTH for queue in self.queues.values())
        return orders

    def finish(self, worker: str) -> ChunkTask:
        unit = self.queues[worker].pop(0)
        assert self.dispatch.done(worker, unit)
        assert not self.dispatch.done(worker, unit), "a second answer is nobody's"
        self.done[unit.task] += 1
        return unit.task

    def fail(self, worker: str) -> Unit:
        unit = self.queues[worker].pop(0)
        assert self.dispatch.failed(worker, unit)
        return unit

    def kill(self, worker: str, *, blame: bool = True) -> None:
        queue = self.queues.pop(worker)
        self.dispatch.leave(worker, queue[0] if queue and blame else None)

    def drain(self) -> None:
        self.assign()
        while not self.dispatch.finished:
            self.finish(self.busy[0])
            self.assign()

    @property
    def busy(self) -> list[str]:
        return [worker for worker, queue in self.queues.items() if queue]


@settings(max_examples=200)
@given(data=st.data(), chunks=st.integers(0, 12), reductions=st.integers(1, 4), workers=st.integers(1, 5))
def test_every_task_is_done_once_whatever_happens(
    data: st.DataObject, chunks: int, reductions: int, workers: int
) -> None:
    """Workers finish, fail, die with or without blame, and join, in any order."""
    work = tasks(chunks, reductions)
    cluster = Cluster(work, workers=workers)
    for _ in range(data.draw(st.integers(0, 40))):
        cluster.assign()
        under_way = sum(map(len, cluster.queues.values()))
        idle = [worker for worker, queue in cluster.queues.items() if not queue]
        queued = [queue for queue in cluster.queues.values() if len(queue) > 1]
        retried = [unit for queue in queued for unit in queue[1:] if unit.avoided]
        if idle and not retried:
            assert not queued, "nobody is idle while work waits for a busy worker"
        assert cluster.taken - sum(cluster.done.values()) <= max(DEPTH * len(cluster.queues), under_way + 20)
        event = data.draw(st.sampled_from(("finish", "finish", "finish", "fail", "kill", "lose", "join")))
        if event == "join" and len(cluster.queues) < 6:
            cluster.join()
        elif event in ("kill", "lose") and cluster.queues:
            cluster.kill(data.draw(st.sampled_from(sorted(cluster.queues))), blame=event == "kill")
        elif cluster.busy:
            worker = data.draw(st.sampled_from(cluster.busy))
            cluster.fail(worker) if event == "fail" else cluster.finish(worker)
    if not cluster.queues:
        cluster.join()
    cluster.drain()
    assert cluster.done == Counter(work)
    assert cluster.dispatch.finished


@given(chunks=st.integers(1, 30), workers=st.integers(1, 6))
def test_no_more_tasks_are_taken_than_workers_can_hold(chunks: int, workers: int) -> None:
    cluster = Cluster(tasks(chunks), workers=workers)
    cluster.assign()
    assert cluster.taken == min(chunks, DEPTH * workers)
    assert all(cluster.queues.values()) or cluster.taken < workers


@given(unread=st.integers(0, 10))
def test_results_that_nobody_has_read_count_as_under_way(unread: int) -> None:
    cluster = Cluster(tasks(20), workers=3)
    cluster.dispatch.assign(unread)
    assert cluster.taken == max(0, DEPTH * 3 - unread)


def test_nothing_is_taken_without_workers() -> None:
    cluster = Cluster(tasks(3))
    assert cluster.assign() == []
    assert cluster.taken == 0


def test_idle_workers_come_before_queues() -> None:
    cluster = Cluster(tasks(3), workers=3)
    cluster.assign()
    assert [len(queue) for queue in cluster.queues.values()] == [1, 1, 1]


@given(workers=st.integers(1, 5), rounds=st.integers(1, 4), extra=st.integers(1, 3))
def test_chunks_stay_with_their_worker_when_all_keep_the_same_pace(workers: int, rounds: int, extra: int) -> None:
    homes, chunks = Homes(), workers * rounds
    ran: list[dict[int, str]] = []
    for _ in range(1 + extra):
        cluster, found = Cluster(tasks(chunks), homes, workers), {}
        while not cluster.dispatch.finished:
            cluster.assign()
            for worker in cluster.busy:
                found[cluster.finish(worker).chunk] = worker
        ran.append(found)
    assert all(one == ran[0] for one in ran)


def test_an_idle_worker_takes_what_is_queued_behind_a_slow_one() -> None:
    cluster = Cluster(tasks(4), workers=2)
    cluster.assign()
    for _ in range(2):
        cluster.finish("worker-1")
    (order,) = cluster.assign()
    assert (order.worker, order.taken_from) == ("worker-1", "worker-0")
    assert cluster.homes.of(order.unit.place) == "worker-1"


def test_a_chunk_that_failed_is_tried_elsewhere_first() -> None:
    cluster = Cluster(tasks(1), workers=2)
    cluster.assign()
    (first,) = cluster.busy
    assert cluster.fail(first).failures == 1
    cluster.assign()
    (second,) = cluster.busy
    assert second != first
    assert cluster.fail(second).failures == 2
    cluster.assign()
    assert cluster.busy, "where it failed everywhere, anybody may try again"


def test_only_what_ran_is_blamed_for_the_end_of_its_worker() -> None:
    cluster = Cluster(tasks(2), workers=1)
    cluster.assign()
    running, queued = cluster.queues["worker-0"]
    cluster.kill("worker-0")
    assert (running.failures, queued.failures) == (1, 0)
    cluster.join()
    cluster.assign()
    assert cluster.queues["worker-1"] == [running, queued]
    cluster.kill("worker-1", blame=False)
    assert (running.failures, queued.failures) == (1, 0)


def test_a_joining_worker_gets_work_at_once() -> None:
    cluster = Cluster(tasks(8), workers=1)
    cluster.assign()
    late = cluster.join()
    cluster.assign()
    assert cluster.queues[late]


def test_an_answer_that_comes_too_late_is_nobodys() -> None:
    cluster = Cluster(tasks(1), workers=1)
    (order,) = cluster.assign()
    cluster.kill("worker-0")
    assert not cluster.dispatch.done("worker-0", order.unit)
    assert not cluster.dispatch.failed("worker-0", order.unit)


def test_a_dead_workers_chunks_have_no_home() -> None:
    homes = Homes()
    homes.move(("search", 0), "a")
    homes.move(("search", 1), "b")
    homes.forget("a")
    assert homes.of(("search", 0)) is None
    assert homes.of(("search", 1)) == "b"
    assert not homes.had("a", ("search", 0))
