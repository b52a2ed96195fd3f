"""Questions to the head node of a cluster, which may be gone: Ray would wait for its answer for as long as it takes.

Knows: how long is too long, and what to tell then. Does not know: what is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import ray

from scheduler_search.cluster import health
from scheduler_search.errors import ClusterError

ANSWER_SECONDS = 30.0

Answer = TypeVar("Answer")


def within(ask: Callable[[], Answer]) -> Answer:
    """What the cluster answers, in time.

    Raises:
        ClusterError: the head node is gone, answers with an error, or not at all.
    """
    if not health.answers():
        raise _gone("nobody at its address")
    found: list[Answer] = []
    errors: list[ray.exceptions.RayError] = []
    answered = threading.Event()

    def call() -> None:
        try:
            found.append(ask())
        except ray.exceptions.RayError as error:
            errors.append(error)
        answered.set()

    # A call that nobody answers cannot be given up: it is left to its thread.
    threading.Thread(target=call, name="is the cluster there", daemon=True).start()
    answered.wait(ANSWER_SECONDS)
    if found:
        return found[0]
    raise _gone(f"{type(errors[0]).__name__}: {errors[0]}" if errors else f"nothing for {ANSWER_SECONDS:g} s")


def _gone(actual: str) -> ClusterError:
    return ClusterError(
        "the head node of the cluster must answer while a study runs",
        actual=actual,
        remedy="resume the study when the cluster is back, or on another",
    )
