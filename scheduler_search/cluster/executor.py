"""The executor that runs chunks on the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import ray

from scheduler_search.cluster.connection import connect
from scheduler_search.cluster.events import Report, WorkerJoined, ignore
from scheduler_search.cluster.worker import Answer, Maker, Worker, local_executor
from scheduler_search.errors import WorkerError
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkResult, ChunkTask, ModelDescription, SplitDescription, SplitName


class RayExecutor:
    """Runs the chunks of one study on a Ray cluster; implements ``study.values.Executor``.

    Args:
        address: of the cluster, as ``connect`` takes it; None where this process is connected already.
        report: gets what happens to the workers. It may be set at any time.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        *,
        address: str | None = None,
        report: Report | None = None,
        make: Maker = local_executor,
    ) -> None:
        self.report: Report = report or ignore
        self._definition = definition
        self._address = address
        self._make = make
        self._stack = ExitStack()
        self._worker: Any = None

    def model(self) -> ModelDescription:
        """Describe the model, as the first worker loaded it."""
        self._start()
        return self._hello.model

    def split(self, name: SplitName) -> SplitDescription:
        """Describe a split, as the first worker prepared it."""
        self._start()
        return self._ask(self._worker.describe.remote(name))

    def context(self, name: SplitName) -> dict[str, object]:
        """The ingredients of the split's ``context_digest``."""
        self._start()
        return self._ask(self._worker.context.remote(name))

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        """Run the tasks on whichever worker is free."""
        self._start()
        for task in tasks:
            yield ChunkResult(task, self._ask(self._worker.run.remote(task)))

    def prefill_milliseconds(self, split: SplitName, reductions: Sequence[Reduction]) -> tuple[float, ...]:
        """Median wall time of one chunk's prefill under each reduction, measured side by side on one worker."""
        self._start()
        return self._ask(self._worker.prefill.remote(split, reductions))

    def close(self) -> None:
        """Stop the workers, and leave the cluster unless the process was connected before."""
        self._worker = None
        self._stack.close()

    def _start(self) -> None:
        if self._worker is not None:
            return
        self._stack.enter_context(connect(self._address))
        self._worker = ray.remote(Worker).options(num_cpus=1).remote(self._definition.to_json(), self._make)
        self._hello = self._ask(self._worker.hello.remote())
        self.report(WorkerJoined("worker-1", self._hello.node, self._hello.device))

    def _ask(self, reference: Any) -> Any:
        answer: Answer = ray.get(reference)
        if answer.fault is not None:
            raise answer.fault.error or WorkerError("a worker must answer", actual=answer.fault.text)
        return answer.value
