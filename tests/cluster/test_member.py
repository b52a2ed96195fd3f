"""What Ray tells of a worker becomes an answer or its end, and time is only counted against chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
    TaskCancelledError,
)

from scheduler_search.cluster.dispatch import Unit
from scheduler_search.cluster.member import DeadWorkerError, Member
from scheduler_search.cluster.worker import Answer, Line
from scheduler_search.errors import ModelError
from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.values import ChunkTask

ANSWER = Answer(7, None, (), 5)


class Actor:
    """Its references are what ``ray.get`` shall do."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.outcomes: list[object] = []

    def __getattr__(self, name: str) -> Any:
        return Method(self, name)


class Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor = actor
        self._name = name

    def remote(self, *_: object) -> object:
        self._actor.asked.append(self._name)
        return self._actor.outcomes.pop(0) if self._actor.outcomes else ANSWER


@pytest.fixture(autouse=True)
def cancelled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """References that were cancelled."""

    def get(reference: object) -> object:
        if isinstance(reference, BaseException):
            raise reference
        return reference

    found: list[object] = []
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cancel", found.append)
    return found


def unit(chunk: int = 0) -> Unit:
    return Unit(ChunkTask("search", chunk, Reduction((1.0, 0.5), make_rule("attention-rank", {}))))


def member(*outcomes: object) -> tuple[Member, Actor]:
    actor = Actor()
    actor.outcomes = list(outcomes)
    return Member("worker-1", actor, None), actor


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("run", f"Traceback\n  somewhere\n{type(cause).__name__}: {cause}", cause)


def test_an_idle_worker_shows_that_it_is_alive_before_it_runs_anything() -> None:
    worker, actor = member()
    worker.run(unit(0), 0.0)
    worker.run(unit(1), 0.0)
    assert actor.asked == ["ping", "run", "run"]
    for _ in range(3):
        assert worker.take(0.0).answer == ANSWER
    assert worker.head is None
    assert worker.device_bytes == 5
    worker.run(unit(2), 0.0)
    assert actor.asked[3:] == ["ping", "run"]


@pytest.mark.parametrize(
    "make",
    [
        ActorDiedError,
        lambda: ActorUnavailableError("it does not answer", None),
        lambda: NodeDiedError("its node is gone"),
        lambda: OutOfMemoryError("its node had no memory left"),
    ],
)
def test_whatever_ends_a_worker_is_its_end(make: Callable[[], Exception]) -> None:
    worker, _ = member(make())
    call = worker.ask("run", now=0.0, unit=unit())
    with pytest.raises(DeadWorkerError):
        worker.take(0.0)
    assert worker.head is call, "what it ran is still known"


def test_what_is_no_answer_of_ours_is_its_end() -> None:
    worker, _ = member("surprise")
    worker.ask("hello", now=0.0)
    with pytest.raises(DeadWorkerError, match="it answered with str"):
        worker.take(0.0)


def test_an_error_that_ray_caught_is_a_fault() -> None:
    ours = ModelError("a model must be there")
    worker, _ = member(task_error(ours), task_error(ValueError("no")))
    for _ in range(2):
        worker.ask("run", now=0.0, unit=unit())
    first, second = worker.take(0.0).answer, worker.take(0.0).answer
    assert first is not None
    assert first.fault is not None
    assert first.fault.error is ours
    assert second is not None
    assert second.fault is not None
    assert (second.fault.error, second.fault.text) == (None, "ValueError: no")


def test_what_an_answer_said_that_was_lost_comes_with_the_next_and_once() -> None:
    first, second, third = (Line(number, "warning", f"line {number}") for number in (1, 2, 3))
    answers = (Answer(None, None, (first,), 0), TaskCancelledError(), Answer(None, None, (second, third), 0))
    worker, _ = member(*answers, Answer(None, None, (third,), 0))
    for _ in range(4):
        worker.ask("run", now=0.0, unit=unit())
    heard = [worker.take(0.0).answer for _ in range(4)]
    assert [answer.lines for answer in heard if answer is not None] == [(first,), (), (second, third), ()]


def test_time_counts_from_when_a_chunk_began() -> None:
    worker, _ = member()
    worker.ask("hello", now=0.0)
    assert not worker.overdue(1e6, 10.0), "loading knows no bound"
    worker.take(0.0)
    assert not worker.overdue(1e6, 10.0), "nor does idleness"
    worker.run(unit(0), 100.0)
    worker.run(unit(1), 100.0)
    worker.take(101.0)
    assert not worker.overdue(111.0, 10.0)
    assert worker.overdue(111.1, 10.0)
    worker.take(112.0)
    assert not worker.overdue(122.0, 10.0), "the second began when the first was done"
    assert worker.overdue(122.1, 10.0)


def test_what_is_withdrawn_keeps_its_place(cancelled: list[object]) -> None:
    worker, _ = member(ANSWER, ANSWER, TaskCancelledError())
    first, second = unit(0), unit(1)
    worker.run(first, 0.0)
    worker.run(second, 0.0)
    worker.withdraw(second)
    worker.withdraw(second)
    assert len(cancelled) == 1
    assert not worker.take(0.0).withdrawn
    assert not worker.take(0.0).withdrawn
    call = worker.take(0.0)
    assert call.withdrawn
    assert call.answer == Answer(None, None, (), 0)
