"""What the coordinator itself costs per trial: ask, tell, record and heartbeat, with an evaluator that costs nothing.

    OMP_NUM_THREADS=1 python -m benchmarks.coordinator

Prints a Markdown table: SQLite and a private PostgreSQL server that waits for the disk at every commit, with nothing
recorded, with 10,000 trials of other studies, and in one stage of 2,000 trials with the 10,000 beside it. Every
trial reads 40 samples in three chunks, each its own transaction. Times are between the ends of two trials. The
suggestion is apart: the Gaussian process where there is one, a random number in the long stage. What is left is the
coordinator's overhead, its heartbeat thread beside it; a machine that does other work adds to the wall time, and hardly
to that of the processor (this process alone, without PostgreSQL's).

Exits with 1 where the overhead exceeds its goal: 30 ms per trial on SQLite, 60 ms on PostgreSQL (medians).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations_with_replacement, islice, pairwise
from pathlib import Path
from statistics import fmean, median, quantiles
from unittest import mock

from benchmarks.history import copy_study
from scheduler_search.coordinator import make_algorithm, run_study, stage
from scheduler_search.coordinator.events import Event, TrialFinished
from scheduler_search.search import Algorithm, Candidate, Effort, Stage, next_batch
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import StudyDefinition
from scheduler_search.study.states import Decision, StudyRecord
from tests.coordinator.simulated import LAYERS, VISION_TOKENS, SimulatedExecutor
from tests.postgres import PostgresServer

GOALS = {"sqlite": 30.0, "postgresql": 60.0}
COLUMNS = (
    "server",
    "recorded before",
    "stage",
    "trials",
    "overhead, median ms",
    "fastest 10 %",
    "slowest 5 %",
    "median of the first 100",
    "of the last 100",
    "processor, mean ms",
    "suggestion, mean ms",
)


@dataclass
class Clock:
    """When each trial ended, in seconds of the wall and of the processor, and the seconds of suggestions before it."""

    ends: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    suggestions: list[float] = field(default_factory=list)
    _suggesting: float = 0.0
    _suggested: float = 0.0

    def listen(self, event: Event) -> None:
        """Take the time at the end of a trial."""
        if isinstance(event, TrialFinished):
            self.ends.append(time.perf_counter())
            self.processor.append(time.process_time() - self._suggested)
            self.suggestions.append(self._suggesting)
            self._suggesting = 0.0

    @contextmanager
    def watch_suggestions(self) -> Iterator[None]:
        """Time what the coordinator asks the search for."""

        def timed(*arguments: object, **named: object) -> tuple[int, ...]:
            start, processor = time.perf_counter(), time.process_time()
            try:
                return next_batch(*arguments, **named)  # type: ignore[arg-type]
            finally:
                self._suggesting += time.perf_counter() - start
                self._suggested += time.process_time() - processor

        with mock.patch.object(stage, "next_batch", timed):
            yield

    def overheads(self) -> list[float]:
        """Milliseconds of each trial but the first, less its suggestion."""
        spans = [end - start for start, end in pairwise(self.ends)]
        return [1000 * (span - spent) for span, spent in zip(spans, self.suggestions[1:], strict=True)]


class LongStage:
    """An algorithm of one stage of many trials: what a search of a very large domain would be."""

    stages = 1

    def __init__(self, trials: int) -> None:
        self._trials = trials

    def next_stage(self, decisions: Sequence[Decision]) -> Stage | None:
        """The stage, until it is decided."""
        if decisions:
            return None
        counts = combinations_with_replacement(range(VISION_TOKENS, -1, -1), LAYERS)
        candidates = tuple(_candidate(one) for one in islice(counts, self._trials + 100))
        return Stage(0, "long", "keep_rate", candidates, 0, Effort(initial=0, iterations=self._trials - 1))

    def final(self, decisions: Sequence[Decision]) -> tuple[float, ...]:
        """The rates of the decision."""
        return decisions[-1].keep_rates


def _candidate(counts: Sequence[int]) -> Candidate:
    rates = tuple(count / VISION_TOKENS for count in counts)
    return Candidate(rates[-1], rates, 0.0, (rates[-1],), 1.0)


def definition(name: str, **search: object) -> StudyDefinition:
    """A study of the simulated model."""
    return StudyDefinition.model_validate(
        {
            "name": name,
            "model": {"id": "testbed:tiny-llava"},
            "data": {"source": "testbed", "search": {"samples": 40}, "validation": {"samples": 40}},
            "search": search,
        }
    )


@dataclass(frozen=True)
class Scenario:
    """A study that is timed, and how many trials of others are recorded before it."""

    history: int
    name: str
    trials: int | None = None

    def run(self, url: str) -> Clock:
        """Run the study to its end on the database at ``url``."""
        search: dict[str, object] = {"algorithm": "p-sigmoid", "budget": 0.3, "faithful": True}
        algorithm: Algorithm | None = None
        if self.trials is not None:
            search, algorithm = {"sampler": "random"}, LongStage(self.trials)
        clock = Clock()
        with StudyDatabase.open(url) as database, clock.watch_suggestions():
            study = database.add_study(definition(f"timed-{self.name}-{self.history}", **search))
            _run(database, study, algorithm, clock)
        return clock


def _run(database: StudyDatabase, study: StudyRecord, algorithm: Algorithm | None, clock: Clock) -> None:
    executor = SimulatedExecutor()
    algorithm = algorithm or make_algorithm(study.definition, executor)
    run_study(database, study, executor, clock.listen, algorithm=algorithm)


def fill(url: str, trials: int, recorded: int = 200) -> None:
    """Record ``trials`` trials of other studies: one study that ran, and copies of it."""
    recorded = min(recorded, trials)
    with StudyDatabase.open(url) as database:
        study = database.add_study(definition("history", sampler="random"))
        _run(database, study, LongStage(recorded), Clock())
    copy_study(url, trials // recorded - 1)


def row(server: str, scenario: Scenario, clock: Clock) -> tuple[str, ...]:
    """The cells of the table."""
    overheads = clock.overheads()
    figures = (
        median(overheads),
        quantiles(overheads, n=10)[0],
        quantiles(overheads, n=20)[-1],
        median(overheads[:100]),
        median(overheads[-100:]),
        1000 * (clock.processor[-1] - clock.processor[0]) / len(overheads),
        1000 * fmean(clock.suggestions),
    )
    return (server, f"{scenario.history:,}", scenario.name, str(len(clock.ends)), *(f"{one:.1f}" for one in figures))


@contextmanager
def servers(names: Sequence[str]) -> Iterator[dict[str, Iterator[str]]]:
    """By server an endless supply of URLs of empty databases."""
    with tempfile.TemporaryDirectory() as folder:
        supplies: dict[str, Iterator[str]] = {}
        if "sqlite" in names:
            supplies["sqlite"] = (f"sqlite:///{Path(folder) / f'{number}.db'}" for number in range(100))
        if "postgresql" not in names:
            yield supplies
            return
        with PostgresServer(durable=True) as server:
            supplies["postgresql"] = (server.url(server.create_database()) for _ in range(100))
            yield supplies


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code says whether the goals were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", choices=tuple(GOALS), default=tuple(GOALS))
    parser.add_argument("--history", type=int, default=10_000, help="recorded trials of other studies")
    parser.add_argument("--trials", type=int, default=2_000, help="of the long stage")
    chosen = parser.parse_args(arguments)
    met = True
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    with servers(chosen.servers) as supplies:
        for server, urls in supplies.items():
            empty, filled = next(urls), next(urls)
            fill(filled, chosen.history)
            for url, scenario in (
                (empty, Scenario(0, "p-sigmoid")),
                (filled, Scenario(chosen.history, "p-sigmoid")),
                (filled, Scenario(chosen.history, "long", chosen.trials)),
            ):
                clock = scenario.run(url)
                met &= median(clock.overheads()[-100:]) <= GOALS[server]
                print("| " + " | ".join(row(server, scenario, clock)) + " |", flush=True)
    print("\ngoals met" if met else f"\ngoals missed: {GOALS} ms")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
