"""Nodes where workers could not be started: which to leave alone, when to try again, and what to tell at the end.

Knows: that an error of ours comes again wherever it came once, and that any other may pass. Does not know: Ray, or what
a worker does while it starts.
"""

from __future__ import annotations

from collections import Counter

from scheduler_search.errors import SchedulerSearchError, WorkerError

_LONGEST_PAUSE = 30.0


class Troubles:
    """Failures to start a worker, by node; None is a node that nobody knows.

    Args:
        attempts: failures in a row after which a node is left alone.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._failures: Counter[str | None] = Counter()
        self._avoided: set[str | None] = set()
        self._first: SchedulerSearchError | None = None
        self._last = ""
        self._pause_until = 0.0

    @property
    def avoided(self) -> frozenset[str]:
        """Nodes to leave alone."""
        return frozenset(node for node in self._avoided if node is not None)

    @property
    def any_hopeless(self) -> bool:
        """Whether some node is of no use."""
        return bool(self._avoided)

    @property
    def everywhere(self) -> bool:
        """Whether workers fail before anybody knows where they are, which may be on any node."""
        return None in self._avoided

    def pausing(self, now: float) -> bool:
        """Whether it is too early for the next attempt."""
        return now < self._pause_until

    def add(self, node: str | None, text: str, error: SchedulerSearchError | None, now: float) -> None:
        """A worker did not start."""
        self._failures[node] += 1
        self._first = self._first or error
        self._last = text
        if error is not None or self._failures[node] >= self._attempts:
            self._avoided.add(node)
        if node is None or node not in self._avoided:
            self._pause_until = now + min(2.0 ** (self._failures[node] - 1), _LONGEST_PAUSE)

    def forget(self, node: str | None) -> None:
        """A worker did start there."""
        self._failures.pop(node, None)
        self._failures.pop(None, None)
        self._avoided.discard(None)

    def cause(self) -> SchedulerSearchError:
        """Why there is no worker."""
        if self._first is not None:
            return self._first
        return WorkerError(
            "a worker must start on some node of the cluster",
            actual=self._last,
            remedy="see the log of the study, and Ray's own logs on the node",
        )
