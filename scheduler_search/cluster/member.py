"""One worker as its owner sees it: an actor, and what it was asked and has not answered yet, in order.

Knows: Ray's references and errors, that calls are answered one at a time and in order, and since when the first of them
has been running. Does not know: other workers, or what an answer is for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray._private.state import actors
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from scheduler_search.cluster.asking import within
from scheduler_search.cluster.dispatch import Unit
from scheduler_search.cluster.worker import Answer, Fault, Hello, Line, Where
from scheduler_search.errors import SchedulerSearchError

Method = Literal["where", "hello", "describe", "context", "adopt", "ping", "run", "prefill"]

# What can be waited for as long as it takes: loading a model and reading data know no bound.
_UNTIMED: frozenset[Method] = frozenset({"where", "hello", "describe", "context", "adopt", "prefill"})


class DeadWorkerError(Exception):
    """The process of a worker is gone, or cannot be reached. Never leaves the package."""


@dataclass(eq=False)
class Call:
    """Something that a worker was asked. ``answer`` is there when it has been taken."""

    method: Method
    reference: Any
    unit: Unit | None = None
    withdrawn: bool = False
    answer: Answer | None = None


class Member:
    """A worker. ``hello`` is there when it has loaded the model, ``ready`` is set when it takes chunks.

    Args:
        bundle: of the placement group that it was started in.
    """

    def __init__(self, name: str, actor: Any, bundle: int | None) -> None:
        self.name = name
        self.bundle = bundle
        self.where: Where | None = None
        self.hello: Hello | None = None
        self.ready = False
        self.device_bytes = 0
        self._actor = actor
        self._calls: deque[Call] = deque()
        self._began = 0.0
        self._lines = 0

    @property
    def node(self) -> str:
        """The name of its machine, as far as it is known."""
        return self.where.host if self.where is not None else "a node unknown"

    @property
    def node_id(self) -> str | None:
        """Ray's id of its node; None where it was lost before it was placed."""
        return self.where.node if self.where is not None else _node_of(self._actor)

    @property
    def head(self) -> Call | None:
        """What it does now."""
        return self._calls[0] if self._calls else None

    @property
    def load(self) -> int:
        """How much it was asked."""
        return len(self._calls)

    def ask(self, method: Method, *arguments: object, now: float, unit: Unit | None = None) -> Call:
        """Ask something, behind what it was asked before."""
        call = Call(method, getattr(self._actor, method).remote(*arguments), unit)
        if not self._calls:
            self._began = now
        self._calls.append(call)
        return call

    def run(self, unit: Unit, now: float) -> None:
        """Run a chunk. An idle worker first shows that it is alive, so that no chunk is blamed where it was not."""
        if not self._calls:
            self.ask("ping", now=now)
        self.ask("run", unit.task, now=now, unit=unit)

    def withdraw(self, unit: Unit | None = None) -> None:
        """Take a chunk back, or all. If it runs already it is run to its end, and nobody gets the result."""
        for call in self._calls:
            if call.unit is not None and not call.withdrawn and unit in (None, call.unit):
                call.withdrawn = True
                ray.cancel(call.reference)

    def take(self, now: float) -> Call:
        """Take the answer of the first call, which must be there.

        Raises:
            DeadWorkerError: there will be no more answers.
        """
        call = self._calls[0]
        call.answer = self._heard(_answer(call.reference))
        self.device_bytes = max(self.device_bytes, call.answer.device_bytes)
        self._calls.popleft()
        # Seen no earlier than it happened, so that nobody is taken to be slower than it is.
        self._began = now
        return call

    def _heard(self, answer: Answer) -> Answer:
        """The answer with the lines that were not in another one."""
        lines = tuple(line for line in answer.lines if line.number == 0 or line.number > self._lines)
        self._lines = max([self._lines, *(line.number for line in lines)])
        return replace(answer, lines=lines)

    def overdue(self, now: float, seconds: float) -> bool:
        """Whether it has been running a chunk for longer than that."""
        return bool(self._calls) and self._calls[0].method not in _UNTIMED and now - self._began > seconds

    def kill(self) -> None:
        """End the process."""
        ray.kill(self._actor, no_restart=True)


def _answer(reference: Any) -> Answer:
    try:
        answer = ray.get(reference)
    except TaskCancelledError:
        return Answer(None, None, (), 0)
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, SchedulerSearchError) else None
        return Answer(None, Fault(cause, _last_line(error), str(error)), (Line(0, "error", str(error)),), 0)
    except RayError as error:
        raise DeadWorkerError(f"{type(error).__name__}: {_reason(error)}") from error
    if not isinstance(answer, Answer):
        raise DeadWorkerError(f"it answered with {type(answer).__name__}")
    return answer


def _node_of(actor: Any) -> str | None:
    """The node that Ray put an actor on that never answered. There is no public way to ask without Ray's dashboard."""
    found = within(lambda: actors(actor._actor_id.hex()))
    return str(found.get("Address", {}).get("NodeID", "")) or None


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _reason(error: Exception) -> str:
    """Ray's own text, of which the first sentences say why."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines)[:500]
