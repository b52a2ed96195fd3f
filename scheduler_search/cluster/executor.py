"""The executor that runs chunks on the workers of a Ray cluster.

Knows: how tasks become results while workers come and go, and when a chunk has failed too often. Does not know: how
workers are started (``pool``), which of them gets a chunk (``dispatch``), or why a chunk is run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from scheduler_search.cluster.connection import LOCAL, connect
from scheduler_search.cluster.dispatch import Dispatch, Homes, Unit
from scheduler_search.cluster.events import Progress, Report, WorkerEvent, ignore
from scheduler_search.cluster.pool import PATIENCE_SECONDS, Gone, Pool, Ran
from scheduler_search.cluster.room import needs_of, room_for
from scheduler_search.cluster.worker import Fault, Maker, local_executor
from scheduler_search.errors import DataError, SchedulerSearchError, WorkerError
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkResult, ChunkTask, ModelDescription, SplitDescription, SplitName

_STEP_SECONDS = 0.25


class RayExecutor:
    """Runs the chunks of one study on a Ray cluster; implements ``study.values.Executor``.

    Scores are those of ``LocalExecutor``, bit for bit, on devices of the same kind: every chunk runs as a whole on one
    worker, with the study's thread count. Workers are started when first needed.

    Args:
        address: of the cluster, as ``connect`` takes it; None where this process is connected already.
        report: gets what happens to the workers, in the thread that uses the executor. It may be set at any time.
        make: makes the executor inside a worker; for tests and benchmarks.
        patience: seconds that may pass without a node that could hold a worker. A private cluster never grows.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        *,
        address: str | None = None,
        report: Report | None = None,
        make: Maker = local_executor,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.report: Report = report or ignore
        self._definition = definition
        self._address = address
        self._make = make
        self._patience = 0.0 if address == LOCAL else patience
        self._stack = ExitStack()
        self._pool: Pool | None = None
        self._homes = Homes()
        self._chunks = 0
        self._seconds = 0.0

    def model(self) -> ModelDescription:
        """Describe the model as the first worker loaded it.

        Raises:
            ClusterError: the cluster cannot be used, or has no node for a worker.
            SchedulerSearchError: no node can load the model.
        """
        pool = self._workers()
        pool.wait()
        assert pool.model is not None
        return pool.model

    def split(self, name: SplitName) -> SplitDescription:
        """Describe a split as the first worker prepared it.

        Raises:
            DataError: the study has no such split, or no node its data.
        """
        self._check_split(name)
        return self._workers().describe(name).description

    def context(self, name: SplitName) -> dict[str, object]:
        """The ingredients of the split's ``context_digest``."""
        self._check_split(name)
        return dict(self._workers().describe(name).context)

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        """Run the tasks on whichever workers there are, yielding results in any order.

        At most two tasks per worker are taken before their results are read.

        Raises:
            WorkerError: a chunk failed as often as ``[workers] attempts`` says.
            SchedulerSearchError: a chunk failed as often, and with this error the last time.
        """
        run = _Run(self._workers(), Dispatch(tasks, self._homes), self._definition.workers.attempts)
        begun, before = time.monotonic(), self._seconds
        try:
            for result in run.results():
                if result is not None:
                    self._chunks += 1
                self._seconds = before + time.monotonic() - begun
                self.report(Progress(run.workers, self._chunks, self._seconds, run.device_bytes))
                if result is not None:
                    yield result
        finally:
            run.leave()

    def prefill_milliseconds(self, split: SplitName, reductions: Sequence[Reduction]) -> tuple[float, ...]:
        """Median wall time of one chunk's prefill under each reduction, measured side by side on one worker."""
        return tuple(self._workers().ask("prefill", split, tuple(reductions)))

    def step(self, seconds: float) -> None:
        """Look after the workers without running anything, for about so long at most: some may join, others be gone.

        Raises:
            SchedulerSearchError: there is no worker, and never will be.
        """
        self._workers().step(seconds)

    def close(self) -> None:
        """Stop the workers, and leave the cluster unless this process was connected before."""
        if self._pool is not None:
            self._pool.stop()
        self._pool = None
        self._homes = Homes()
        self._stack.close()

    def _workers(self) -> Pool:
        if self._pool is None:
            self._stack.enter_context(connect(self._address))
            needs = needs_of(self._definition)
            self._pool = Pool(self._definition, needs, room_for(needs), self._make, self._tell, self._patience)
        return self._pool

    def _tell(self, event: WorkerEvent) -> None:
        self.report(event)

    def _check_split(self, name: SplitName) -> None:
        if name not in self._definition.data.splits:
            raise DataError(f"the study must have a {name} split", remedy=f"add {name} = {{ samples = ... }} to [data]")


class _Run:
    """One call of ``run``: brings what happens to the workers and what shall happen next together."""

    def __init__(self, pool: Pool, dispatch: Dispatch, attempts: int) -> None:
        self._pool = pool
        self._dispatch = dispatch
        self._attempts = attempts
        self._found: list[ChunkResult] = []
        self._joined: set[str] = set()

    @property
    def workers(self) -> int:
        """That take chunks."""
        return len(self._joined)

    @property
    def device_bytes(self) -> int:
        """Most that any worker allocated."""
        return self._pool.device_bytes

    def results(self) -> Iterator[ChunkResult | None]:
        """Results, one by one, and None where the workers changed. What is next is only asked for after each."""
        while True:
            self._hear()
            changed = self._greet()
            self._hand_out()
            if changed:
                yield None
            if self._found:
                yield self._found.pop(0)
                self._pool.step(0.0)
            elif self._dispatch.finished:
                return
            else:
                self._pool.step(_STEP_SECONDS)

    def leave(self) -> None:
        """Take back whatever is still queued: nobody waits for it any more."""
        for worker in self._joined:
            self._pool.withdraw(worker)

    def _greet(self) -> bool:
        ready = set(self._pool.ready)
        for worker in sorted(ready - self._joined):
            self._dispatch.join(worker)
        changed, self._joined = ready != self._joined, ready
        return changed

    def _hand_out(self) -> None:
        for order in self._dispatch.assign(len(self._found)):
            if order.taken_from is not None:
                self._pool.withdraw(order.taken_from, order.unit)
            self._pool.run(order.worker, order.unit)

    def _hear(self) -> None:
        for event in self._pool.happened():
            match event:
                case Gone():
                    if self._dispatch.leave(event.worker, event.blamed) and event.blamed is not None:
                        self._check(event.blamed, event.worker, Fault(None, event.reason, ""))
                case Ran(answer=answer) if answer.fault is not None:
                    if self._dispatch.failed(event.worker, event.unit):
                        self._check(event.unit, event.worker, answer.fault)
                case Ran():
                    if self._dispatch.done(event.worker, event.unit):
                        self._found.append(ChunkResult(event.unit.task, event.answer.value))

    def _check(self, unit: Unit, worker: str, fault: Fault) -> None:
        """Raise where a chunk has failed often enough."""
        if unit.failures < self._attempts:
            return
        raise self._error(unit, worker, fault)

    def _error(self, unit: Unit, worker: str, fault: Fault) -> SchedulerSearchError:
        if fault.error is not None:
            return fault.error
        return WorkerError(
            "a chunk must run on a worker",
            actual=f"{unit.failures} failures, the last one: {fault.text}",
            place=f"chunk {unit.task.chunk} of the {unit.task.split} split, on {worker}",
            remedy="see the log of the study; resume goes on from here",
        )
