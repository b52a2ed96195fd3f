"""What a search on the testbed costs: seed 003's own procedure without any saving, and each saving added to it.

    OMP_NUM_THREADS=1 python -m benchmarks.search_cost

Prints a Markdown table for each algorithm. Layer-tokens are tokens that pass a decoder layer, summed over layers,
samples and trials, and FLOPs are those of the same layers (``schedule.cost``); wall time is that of the whole search
after model and data are loaded, vision tower, Gaussian processes and bookkeeping included. The validation scores are
of the schedules that the searches found, on samples that no search saw, and their differences are paired. G-Search
trades score for tokens, so that two searches are compared by what they maximise, score - penalty, as well as by the
score.

Exits with 1 where the two exact searches (with and without the prefix store) found different schedules.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from scheduler_search.coordinator import run_study
from scheduler_search.coordinator.evaluations import Evaluations
from scheduler_search.evaluation import LocalExecutor
from scheduler_search.export.paired import paired_difference
from scheduler_search.schedule.canonical import digest_of
from scheduler_search.schedule.cost import SplitCost
from scheduler_search.schedule.counts import keep_counts
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import StudyDefinition
from scheduler_search.study.states import TrialRecord
from scheduler_search.study.values import ChunkResult, ChunkTask, SplitDescription

STUDIES = Path(__file__).parents[1] / "studies"
FILES = {"g-search": "quickstart.toml", "p-sigmoid": "quickstart-sigmoid.toml"}
_PAPER = {"initial": 10, "iterations": 20}


@dataclass(frozen=True)
class Variant:
    """One way to run the search: settings of [search], those of G-Search alone, and whether prefixes are kept."""

    name: str
    settings: Mapping[str, object]
    greedy: Mapping[str, object] = field(default_factory=lambda: {"refine": False})
    prefixes: bool = True


_NOTHING = {**_PAPER, "race_delta": 0.0, "tolerance": 0.0}
VARIANTS = (
    Variant("faithful, nothing saved", {**_PAPER, "faithful": True}, prefixes=False),
    Variant("faithful + prefix store", {**_PAPER, "faithful": True}),
    Variant("+ races alone", {**_NOTHING, "race_delta": 0.05}),
    Variant("+ curves of earlier stages and early end alone", {"race_delta": 0.0}),
    Variant("all savings", {}),
    Variant("all savings, each layer refined (default)", {}, greedy={}),
)


@dataclass
class Cost:
    """What one search took, and what it found."""

    reduction: Reduction | None = None
    search_score: float = 0.0
    share: float = 1.0
    penalty: float = 0.0
    trials: int = 0
    stopped: int = 0
    chunk_runs: int = 0
    layer_tokens: int = 0
    unsaved_tokens: int = 0
    flops: float = 0.0
    process: float = 0.0
    wall: float = 0.0


class _CountedExecutor(LocalExecutor):
    """An executor with its model and data loaded, that counts what runs."""

    def __init__(self, definition: StudyDefinition, prefixes: bool) -> None:
        super().__init__(definition, prefix_memory=None if prefixes else 0)
        self.cost = Cost()
        self.split("search")
        self._decoder = self.model().shape.decoder
        for layer in self._load()[0].model.get_decoder().layers:
            layer.self_attn.register_forward_pre_hook(self._count, with_kwargs=True)

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        """Run the tasks."""
        for result in super().run(tasks):
            self.cost.chunk_runs += 1
            yield result

    def _count(self, _module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        samples, tokens, _ = (args[0] if args else kwargs["hidden_states"]).shape
        self.cost.layer_tokens += samples * tokens
        self.cost.flops += samples * tokens * (self._decoder.linear_flops + self._decoder.attention_flops * tokens)


COLUMNS = ("search", "trials", "stopped", "chunk runs", "layer-tokens", "x less", "GFLOPs", "x less", "processor s")
COLUMNS = (*COLUMNS, "wall s", "x less", "prefill FLOPs found", "search score", "validation score")
COLUMNS = (*COLUMNS, "score minus faithful [95 %]", "objective minus faithful [95 %]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code, 1 if the exact searches found different schedules."""
    options = _parse(arguments)
    same = True
    for algorithm in options.algorithms:
        print(f"\n{algorithm}\n\n{_line(COLUMNS)}\n{_line(['---'] * len(COLUMNS))}", flush=True)
        costs: list[Cost] = []
        scores: list[tuple[float, ...]] = []
        for variant in VARIANTS[: options.variants]:
            if algorithm == "p-sigmoid" and not variant.greedy:
                continue  # it has no layers to refine
            settings = {**variant.settings, **(variant.greedy if algorithm == "g-search" else {})}
            cost, validation = _search(_definition(algorithm, options, settings), variant.prefixes)
            costs.append(cost)
            scores.append(validation)
            print(_row(variant.name, cost, costs[0], validation, scores[0]), flush=True)
        if options.seeds > 1:
            _print_seeds(algorithm, options)
        digests = [digest_of(cost.reduction.to_document()) for cost in costs[:2] if cost.reduction]
        same &= digests[0] == digests[1]
        print(f"\nexact savings alone: {'the same schedule' if digests[0] == digests[1] else 'ANOTHER SCHEDULE'}")
    return 0 if same else 1


def _print_seeds(algorithm: str, options: argparse.Namespace) -> None:
    """What further seeds say: one search split is a small sample, for the faithful search as for the default one."""
    print(
        "\n| seed | score minus faithful [95 %] | objective minus faithful [95 %] | layer-tokens, saved |",
        flush=True,
    )
    print("| --- | --- | --- | --- |")
    default = VARIANTS[-1] if algorithm == "g-search" else VARIANTS[-2]
    pairs: list[tuple[Sequence[float], Sequence[float]]] = []
    saved: list[float] = []
    for seed in range(options.seed, options.seed + options.seeds):
        runs = []
        for variant in (VARIANTS[1], default):
            settings = {**variant.settings, **(variant.greedy if algorithm == "g-search" else {})}
            definition = _definition(algorithm, argparse.Namespace(**{**vars(options), "seed": seed}), settings)
            runs.append(_search(definition, prefixes=True))
        (faithful, first), (found, second) = runs
        pairs.append((second, first))
        saved.append(faithful.penalty - found.penalty)
        ratio = f"{faithful.unsaved_tokens / found.layer_tokens:.1f}"
        print(_line((str(seed), *_differences(pairs[-1:], saved[-1]), ratio)), flush=True)
    print(_line(("all", *_differences(pairs, fmean(saved)), "")), flush=True)


def _differences(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], saved: float) -> tuple[str, str]:
    """Paired differences over the samples of all pairs, in the score and with the penalty."""
    ours, theirs = ([score for pair in pairs for score in pair[side]] for side in (0, 1))
    one = paired_difference(ours, theirs)
    return tuple(  # type: ignore[return-value]
        f"{one.mean + more:+.4f} [{one.low + more:+.4f}, {one.high + more:+.4f}]" for more in (0.0, saved)
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="cost of searches, saving by saving")
    parser.add_argument("--algorithms", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--samples", type=int, default=512, help="of the search split (default: 512)")
    parser.add_argument("--validation", type=int, default=600, help="samples (default: 600)")
    parser.add_argument("--variants", type=int, default=len(VARIANTS), help="only the first so many, at least two")
    parser.add_argument("--seed", type=int, default=0, help="of the study (default: 0)")
    parser.add_argument("--seeds", type=int, default=1, help="studies that the scores are compared on (default: 1)")
    parser.add_argument("--penalty", type=float, help="of G-Search, per keep rate; the quickstart's without it")
    return parser.parse_args(arguments)


def _definition(algorithm: str, options: argparse.Namespace, settings: Mapping[str, object]) -> StudyDefinition:
    """The quickstart study on a CPU, with the settings of the search that the variant names and no others."""
    tables = tomllib.loads((STUDIES / FILES[algorithm]).read_text(encoding="utf-8"))
    tables["seed"] = options.seed
    tables["model"]["device"] = "cpu"
    tables["data"] = {
        "source": "testbed",
        "search": {"samples": options.samples},
        "validation": {"samples": options.validation},
    }
    kept = {key: value for key, value in tables["search"].items() if key not in _PAPER}
    if algorithm == "g-search" and options.penalty is not None:
        kept["penalty"] = options.penalty
    tables["search"] = {**kept, **settings}
    return StudyDefinition.model_validate(tables)


def _search(definition: StudyDefinition, prefixes: bool) -> tuple[Cost, tuple[float, ...]]:
    """One search in an empty database, and the scores of what it found on the validation split."""
    executor = _CountedExecutor(definition, prefixes)
    with tempfile.TemporaryDirectory() as folder, StudyDatabase.open(f"sqlite:///{folder}/study.db") as database:
        study = database.add_study(definition)
        process, wall = time.process_time(), time.perf_counter()
        reduction = run_study(database, study, executor)
        cost, executor.cost = executor.cost, Cost()
        cost.process, cost.wall = time.process_time() - process, time.perf_counter() - wall
        cost.reduction = reduction
        for stage in database.stages(study):
            for trial in database.trials(stage):
                cost.trials += trial.figures is not None
                cost.stopped += trial.figures is not None and not trial.figures.complete
                cost.unsaved_tokens += _unsaved_tokens(executor.split("search"), trial)
            if stage.decision is not None:
                cost.search_score = stage.decision.score
        cost.share, cost.penalty = _price(definition, executor, reduction)
        validation = Evaluations(database, executor).scores("validation", reduction)
    executor.close()
    return cost, validation


def _unsaved_tokens(split: SplitDescription, trial: TrialRecord) -> int:
    """Layer-tokens of a trial that runs every layer for every sample it reads; without padding."""
    read = trial.figures.samples if trial.figures else 0
    texts, visions = split.text_tokens[:read], split.vision_tokens[:read]
    return sum(sum(keep_counts(trial.keep_rates, vision)) for vision in visions) + sum(texts) * len(trial.keep_rates)


def _price(definition: StudyDefinition, executor: LocalExecutor, reduction: Reduction) -> tuple[float, float]:
    """Share of the unreduced prefill FLOPs on the validation split, and the penalty of a schedule there."""
    search, split, shape = definition.search, executor.split("validation"), executor.model().shape
    cost = SplitCost(shape, split.vision_tokens, split.text_tokens)
    flops, whole = cost(reduction.keep_rates), cost((1.0,) * len(reduction.keep_rates))
    if search.algorithm != "g-search":
        return flops / whole, 0.0
    price = flops / 1e12 if search.penalty_unit == "tflop" else fmean(reduction.keep_rates[search.first_layer - 1 :])
    return flops / whole, search.penalty_value * price


def _row(name: str, cost: Cost, first: Cost, validation: Sequence[float], faithful: Sequence[float]) -> str:
    return _line(
        (
            name,
            str(cost.trials),
            str(cost.stopped),
            str(cost.chunk_runs),
            str(cost.layer_tokens),
            f"{first.layer_tokens / cost.layer_tokens:.1f}",
            f"{cost.flops / 1e9:.1f}",
            f"{first.flops / cost.flops:.1f}",
            f"{cost.process:.1f}",
            f"{cost.wall:.1f}",
            f"{first.wall / cost.wall:.1f}",
            f"{cost.share:.3f}",
            f"{cost.search_score:.4f}",
            f"{fmean(validation):.4f}",
            *_differences([(validation, faithful)], first.penalty - cost.penalty),
        )
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
