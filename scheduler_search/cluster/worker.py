"""A worker: a process of a Ray cluster that holds the model of one study, and runs its chunks one at a time.

Knows: the study as JSON, the executor that it wraps, the node it is on, and what it logged. Does not know: other
workers, or which chunks are its own. Everything it takes and gives is plain data of ours, and what goes wrong is part
of an answer.
"""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray

from scheduler_search.cluster.lines import Lines
from scheduler_search.errors import SchedulerSearchError, WorkerMismatchError
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import (
    ChunkTask,
    Executor,
    ModelDescription,
    SplitDescription,
    SplitName,
)

# Makes the executor of a study, with how many workers share the memory of a machine.
Maker = Callable[[StudyDefinition, int], Executor]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Fault:
    """What went wrong: our own error, where it is one, and how it reads for people."""

    error: SchedulerSearchError | None
    text: str
    traceback: str


@dataclass(frozen=True)
class Line:
    """Something that was logged in a worker, counted from 1 there; 0 for what no worker said itself."""

    number: int
    level: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What a worker answers: a value or a fault, its lines, faults among them, and its peak memory.

    The lines of the answer before are there too: an answer to what is taken back while it is given may be lost.
    """

    value: Any
    fault: Fault | None
    lines: tuple[Line, ...]
    device_bytes: int


@dataclass(frozen=True)
class Where:
    """The node and process of a worker. ``node`` is Ray's id of the node, ``host`` the name of the machine."""

    node: str
    host: str
    process: int


@dataclass(frozen=True)
class Hello:
    """A worker that has loaded the model, with the version of this package there."""

    model: ModelDescription
    version: str

    @property
    def device(self) -> str:
        """What it runs on, as its environment names it."""
        return dict(self.model.environment).get("device", "")


@dataclass(frozen=True)
class Described:
    """A split as one worker prepared it, with the ingredients of its context digest."""

    description: SplitDescription
    context: dict[str, object]


def local_executor(definition: StudyDefinition, share: int) -> Executor:
    """The executor of every study but those of tests."""
    from scheduler_search.evaluation.local import LocalExecutor

    return LocalExecutor(definition, share=share)


class Worker:
    """Runs chunks of the study that ``definition`` is the JSON of.

    Args:
        share: how many workers share the memory of a machine.
        make: makes the executor that runs the chunks.
    """

    def __init__(self, definition: str, share: int = 1, make: Maker = local_executor) -> None:
        self._lines = Lines()
        self._said: tuple[Line, ...] = ()
        self._number = 0
        self._definition = StudyDefinition.from_json(definition, "the definition sent to a worker")
        for name in _THREAD_VARIABLES:
            # Ray sets the first to the CPUs that it reserved. Torch reads them when it is imported.
            os.environ[name] = str(self._definition.workers.threads)
        self._make = make
        self._share = share
        self._made: Executor | None = None

    def where(self) -> Answer:
        """Say where this is: ``Where``."""
        return self._answer(_where)

    def hello(self) -> Answer:
        """Load the model: ``Hello``."""
        return self._answer(lambda: Hello(self._executor.model(), version("scheduler-search")))

    def describe(self, split: SplitName) -> Answer:
        """Prepare a split: ``Described``."""
        return self._answer(lambda: self._described(split))

    def adopt(self, described: Described) -> Answer:
        """Take a split as another worker described it; a fault where this one sees something else."""
        return self._answer(lambda: self._adopt(described))

    def ping(self) -> Answer:
        """Say that the worker is alive and has nothing to do."""
        return self._answer(lambda: None)

    def run(self, task: ChunkTask) -> Answer:
        """The scores of a chunk."""
        return self._answer(lambda: next(iter(self._executor.run([task]))).scores)

    def prefill(self, split: SplitName, reductions: Sequence[Reduction]) -> Answer:
        """Milliseconds of a prefill under each reduction."""
        return self._answer(lambda: self._executor.prefill_milliseconds(split, reductions))

    @property
    def _executor(self) -> Executor:
        if self._made is None:
            self._made = self._make(self._definition, self._share)
        return self._made

    def _described(self, split: SplitName) -> Described:
        description = self._executor.split(split)
        context = getattr(self._executor, "context", None)
        return Described(description, context(split) if context is not None else {})

    def _adopt(self, described: Described) -> None:
        description = described.description
        expect = getattr(self._executor, "expect", None)
        if expect is not None:
            expect(description, described.context)
        found = self._executor.split(description.name)
        if found != description:
            raise WorkerMismatchError(
                "every worker of a study must see the same data with the same model and software",
                actual=_difference(description, found),
                place=f"the {description.name} split",
                remedy="bring model files, data files and installed packages of all nodes to the same state",
            )

    def _answer(self, ask: Callable[[], object]) -> Answer:
        value, fault = None, None
        try:
            value = ask()
        except SchedulerSearchError as error:
            fault = Fault(error, str(error), traceback.format_exc())
        except Exception as error:  # noqa: BLE001 - told to the coordinator, which decides
            fault = Fault(None, f"{type(error).__name__}: {error}", traceback.format_exc())
        return Answer(value, fault, self._says(fault), self._device_bytes())

    def _says(self, fault: Fault | None) -> tuple[Line, ...]:
        taken = [*self._lines.take(), *([("error", fault.traceback)] if fault is not None else [])]
        new = tuple(Line(self._number + index, *line) for index, line in enumerate(taken, start=1))
        again, self._said, self._number = self._said, new, self._number + len(new)
        return again + new

    def _device_bytes(self) -> int:
        peak = getattr(self._made, "peak_memory", None)
        return int(peak()) if peak is not None else 0


def _where() -> Where:
    return Where(ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid())


def _difference(described: SplitDescription, found: SplitDescription) -> str:
    """The first field that differs, short enough to print."""
    for name in ("digest", "context_digest", "chunk_size", "samples", "vision_tokens", "text_tokens"):
        if getattr(described, name) != getattr(found, name):
            if name.endswith("tokens"):
                return f"other {name.replace('_', ' ')}"
            return f"{name.replace('_', ' ')} {getattr(found, name)} instead of {getattr(described, name)}"
    return "another description"
