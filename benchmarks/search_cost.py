"""What a search on the testbed costs with and without the prefix store; both find the same, bit for bit.

    OMP_NUM_THREADS=1 python -m benchmarks.search_cost

Prints a Markdown table. Layer-tokens are tokens that pass a decoder layer, summed over layers, samples and trials;
processor time is that of the whole search after model and data are loaded, vision tower and bookkeeping included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler_search.coordinator import run_study
from scheduler_search.evaluation import LocalExecutor
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import StudyDefinition
from scheduler_search.study.values import ChunkResult, ChunkTask

STUDIES = Path(__file__).parents[1] / "studies"
FILES = {"g-search": "quickstart.toml", "p-sigmoid": "quickstart-sigmoid.toml"}
COLUMNS = ("algorithm", "prefix store", "chunk runs", "layer calls", "layer-tokens", "processor s", "wall s")


@dataclass
class Cost:
    """What one search took, and what it found."""

    reduction: Reduction | None = None
    chunk_runs: int = 0
    layer_calls: int = 0
    layer_tokens: int = 0
    process: float = 0.0
    wall: float = 0.0

    def count(self, hidden: Any) -> None:
        """One decoder layer ran on ``hidden`` [B, S, D]."""
        self.layer_calls += 1
        self.layer_tokens += hidden.shape[0] * hidden.shape[1]


class _CountedExecutor(LocalExecutor):
    """An executor with its model and data loaded, that counts what runs."""

    def __init__(self, definition: StudyDefinition, cost: Cost, memory: int | None) -> None:
        super().__init__(definition, prefix_memory=memory)
        self._cost = cost
        self.split("search")
        for layer in self._load()[0].model.get_decoder().layers:
            layer.self_attn.register_forward_pre_hook(self._count, with_kwargs=True)

    def run(self, tasks: Sequence[ChunkTask]) -> Iterator[ChunkResult]:
        """Run the tasks."""
        for result in super().run(tasks):
            self._cost.chunk_runs += 1
            yield result

    def _count(self, _module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._cost.count(args[0] if args else kwargs["hidden_states"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code, 1 if the two searches found different schedules."""
    options = _parse(arguments)
    print(_line(COLUMNS), _line(["---"] * len(COLUMNS)), sep="\n", flush=True)
    footer = []
    for algorithm in options.algorithms:
        definition = _definition(algorithm, options.samples)
        costs = {}
        for name, memory in (("off", 0), ("on", None)):
            costs[name] = _search(definition, memory)
            print(_row(algorithm, name, costs[name]), flush=True)
        off, on = costs["off"], costs["on"]
        if off.reduction != on.reduction:
            print(f"{algorithm}: the searches found different schedules")
            return 1
        footer.append(
            f"{algorithm}: {off.layer_tokens / on.layer_tokens:.2f} x fewer layer-tokens, "
            f"{off.process / on.process:.2f} x less processor time, the same schedule."
        )
    print("", *footer, sep="\n")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="cost of searches with and without the prefix store")
    parser.add_argument("--algorithms", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--samples", type=int, default=256, help="of the search split (default: 256)")
    return parser.parse_args(arguments)


def _definition(algorithm: str, samples: int) -> StudyDefinition:
    """The quickstart study, on a CPU, with a search split alone."""
    tables = tomllib.loads((STUDIES / FILES[algorithm]).read_text(encoding="utf-8"))
    tables["model"]["device"] = "cpu"
    tables["data"] = {"source": "testbed", "search": {"samples": samples}}
    return StudyDefinition.model_validate(tables)


def _search(definition: StudyDefinition, memory: int | None) -> Cost:
    """One search in an empty database."""
    cost = Cost()
    executor = _CountedExecutor(definition, cost, memory)
    with tempfile.TemporaryDirectory() as folder, StudyDatabase.open(f"sqlite:///{folder}/study.db") as database:
        study = database.add_study(definition)
        process, wall = time.process_time(), time.perf_counter()
        cost.reduction = run_study(database, study, executor)
        cost.process, cost.wall = time.process_time() - process, time.perf_counter() - wall
    executor.close()
    return cost


def _row(algorithm: str, name: str, cost: Cost) -> str:
    figures = (str(cost.chunk_runs), str(cost.layer_calls), str(cost.layer_tokens))
    return _line((algorithm, name, *figures, f"{cost.process:.1f}", f"{cost.wall:.1f}"))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
