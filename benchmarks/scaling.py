"""What workers of a Ray cluster add: chunks per second, with an evaluator that only takes its time.

    python -m benchmarks.scaling

Every chunk sleeps, so that the cores of this machine do not limit how many workers there can be; what is left is what
the executor, Ray and the coordinator cost. The chunks are those of a coordinator that records each of them in SQLite.
The coordinator's share is processor time of this process, over the wall time. Prints a Markdown table, and exits with 1
where chunks per second and worker fall below nine tenths of those of one worker that never waits.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice
from pathlib import Path

from scheduler_search.cluster import RayExecutor, WorkerEvent, WorkerJoined, connect
from scheduler_search.coordinator import Evaluations
from scheduler_search.coordinator.evaluations import Request
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import StudyDefinition
from scheduler_search.study.values import ChunkResult, ChunkTask
from tests.coordinator.simulated import LAYERS, VISION_TOKENS, SimulatedExecutor

GOAL = 0.9
CHUNK = 16
COLUMNS = ("workers", "chunks", "seconds", "chunks per second", "of linear", "coordinator's share of time")


@dataclass(frozen=True)
class Slow:
    """Makes executors whose chunks take ``seconds``; runs inside the workers."""

    seconds: float
    samples: int

    def __call__(self, definition: StudyDefinition, share: int) -> SimulatedExecutor:
        """One of them."""
        del definition, share
        return SlowExecutor(self.seconds, self.samples)


class SlowExecutor(SimulatedExecutor):
    """Sleeps for every chunk."""

    def __init__(self, seconds: float, samples: int) -> None:
        super().__init__(samples=samples, chunk_size=CHUNK)
        self._seconds = seconds

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        """Scores of a rule, later."""
        for task in tasks:
            time.sleep(self._seconds)
            yield from super().run([task])


@dataclass(frozen=True)
class Timing:
    """One row: ``seconds`` of the wall, ``processor`` seconds of this process."""

    workers: int
    chunks: int
    seconds: float
    processor: float

    @property
    def rate(self) -> float:
        """Chunks per second."""
        return self.chunks / self.seconds

    def of_linear(self, chunk_seconds: float) -> float:
        """Of what so many workers that never wait would do."""
        return self.rate * chunk_seconds / self.workers


def definition(workers: int, samples: int) -> StudyDefinition:
    """A study of so many workers, each of which Ray is told to need next to nothing."""
    return StudyDefinition.model_validate(
        {
            "name": "scaling",
            "model": {"id": "testbed:tiny-llava", "device": "cpu"},
            "data": {"source": "testbed", "chunk": CHUNK, "search": {"samples": samples}},
            "workers": {"count": workers, "cpus": 0.01},
        }
    )


def measure(workers: int, chunks: int, seconds: float, candidates: int) -> Timing:
    """Score ``candidates`` reductions on a split of ``chunks`` chunks, one after the other."""
    samples = chunks * CHUNK
    events: list[WorkerEvent] = []
    executor = RayExecutor(definition(workers, samples), report=events.append, make=Slow(seconds, samples))
    try:
        executor.split("search")
        while sum(isinstance(event, WorkerJoined) for event in events) < workers:
            executor.step(0.1)
        with tempfile.TemporaryDirectory() as folder:
            return _timed(executor, Path(folder), workers, chunks, candidates)
    finally:
        executor.close()


def _timed(executor: RayExecutor, folder: Path, workers: int, chunks: int, candidates: int) -> Timing:
    requests = _requests(candidates + 1)
    with StudyDatabase.open(f"sqlite:///{folder}/scaling.db") as database:
        evaluations = Evaluations(database, executor)
        # Chunks find their homes, and every worker has run one.
        evaluations.read("search", requests[:1])
        begun, processor = time.perf_counter(), time.process_time()
        for request in requests[1:]:
            evaluations.read("search", [request])
        return Timing(workers, chunks * candidates, time.perf_counter() - begun, time.process_time() - processor)


def _requests(number: int) -> list[Request]:
    """Reductions that keep different counts, so that no score is recorded already."""
    rule = definition(1, CHUNK).resolved_rule
    counts = combinations_with_replacement(range(VISION_TOKENS, -1, -1), LAYERS - 1)
    rates = ((1.0, *(count / VISION_TOKENS for count in one)) for one in islice(counts, number))
    return [Request(Reduction(one, rule)) for one in rates]


def row(timing: Timing, seconds: float) -> tuple[str, ...]:
    """The cells of the table."""
    return (
        str(timing.workers),
        str(timing.chunks),
        f"{timing.seconds:.1f}",
        f"{timing.rate:.1f}",
        f"{timing.of_linear(seconds):.2f}",
        f"{timing.processor / timing.seconds:.1%}",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code says whether the goal was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2, 4, 8, 16))
    parser.add_argument("--seconds", type=float, default=0.25, help="that a chunk takes")
    parser.add_argument("--chunks", type=int, default=64, help="of the split")
    parser.add_argument("--total", type=float, default=8.0, help="seconds to measure each number of workers, about")
    chosen = parser.parse_args(arguments)
    met = True
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    with connect("local"):
        for workers in chosen.workers:
            once = chosen.chunks * chosen.seconds / workers
            timing = measure(workers, chosen.chunks, chosen.seconds, max(1, round(chosen.total / once)))
            met &= timing.of_linear(chosen.seconds) >= GOAL
            print("| " + " | ".join(row(timing, chosen.seconds)) + " |", flush=True)
    print("\ngoal met" if met else f"\ngoal missed: {GOAL:.0%} of linear")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
