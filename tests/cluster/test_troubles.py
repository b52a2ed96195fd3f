"""Which nodes are left alone, and for how long nobody tries."""

from __future__ import annotations

from scheduler_search.cluster.troubles import Troubles
from scheduler_search.errors import DataError, ModelError, WorkerError


def test_an_error_of_ours_comes_again() -> None:
    troubles = Troubles(attempts=3)
    error = ModelError("a model must be there")
    troubles.add("a", "no model", error, 0.0)
    troubles.add("b", "no data", DataError("data must be there"), 0.0)
    assert troubles.avoided == {"a", "b"}
    assert troubles.any_hopeless
    assert not troubles.everywhere
    assert not troubles.pausing(0.0), "elsewhere it may be tried at once"
    assert troubles.cause() is error


def test_any_other_may_pass() -> None:
    troubles = Troubles(attempts=3)
    troubles.add("a", "the disk is on fire", None, 0.0)
    assert not troubles.any_hopeless
    assert troubles.pausing(0.9)
    assert not troubles.pausing(1.0)
    troubles.forget("a")
    for _ in range(3):
        assert not troubles.avoided
        troubles.add("a", "the disk is on fire", None, 10.0)
    assert troubles.avoided == {"a"}
    cause = troubles.cause()
    assert isinstance(cause, WorkerError)
    assert "the disk is on fire" in str(cause)


def test_pauses_grow_up_to_a_bound() -> None:
    troubles = Troubles(attempts=50)
    for number in range(20):
        troubles.add("a", "", None, 0.0)
        assert troubles.pausing(min(2.0**number, 30.0) - 0.1)
        assert not troubles.pausing(min(2.0**number, 30.0))


def test_workers_that_end_nobody_knows_where() -> None:
    troubles = Troubles(attempts=2)
    troubles.add(None, "it ended", None, 0.0)
    assert not troubles.everywhere
    troubles.add(None, "it ended", None, 0.0)
    assert troubles.everywhere
    assert troubles.pausing(1.0)
    assert troubles.avoided == frozenset()
    troubles.forget("a")
    assert not troubles.everywhere
