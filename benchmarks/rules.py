"""Every declared rule at two budgets on the testbed: what it scores against random tokens, and what ranking costs.

    OMP_NUM_THREADS=1 python -m benchmarks.rules

Prints one Markdown table for each budget. A budget b stands for the FLOPs of the whole prefill, tower included, under
the rate b from decoder layer 3 on; every rule gets the schedule of its default places that spends as much. Rules run
with default parameters. Scores are of a split that nothing was chosen on: there is no search.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from benchmarks.timing import ClockName, timed
from scheduler_search import testbed
from scheduler_search.coordinator import Evaluations
from scheduler_search.evaluation import LocalExecutor
from scheduler_search.export.paired import paired_difference
from scheduler_search.rule import Declaration, Place, Rule, declaration_of, declarations, make_rule
from scheduler_search.runtime import apply_reduction
from scheduler_search.schedule.budget import solve_rate
from scheduler_search.schedule.cost import ModelShape, SplitCost
from scheduler_search.schedule.families import uniform
from scheduler_search.schedule.values import Reduction, VisionReduction
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import StudyDefinition
from scheduler_search.testbed.model import load_checkpoint
from scheduler_search.testbed.processor import build_processor

FIRST_LAYER = 3
COLUMNS = ("rule", "acts at", "keeps", "FLOPs", "score", "minus random [95 %]", "score ms")


@dataclass(frozen=True)
class Bed:
    """The model's shape, the scores of any reduction on the validation split, and their costs."""

    shape: ModelShape
    evaluations: Evaluations
    cost: SplitCost

    def scores(self, reduction: Reduction) -> tuple[float, ...]:
        """Of all samples; run once in the life of the database."""
        return self.evaluations.scores("validation", reduction)

    def flops(self, reduction: Reduction) -> float:
        """Mean prefill FLOPs."""
        return self.cost(reduction.keep_rates, reduction.tower_rates)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = _parse(arguments)
    chosen = [declaration_of(name) for name in options.rules] if options.rules else list(declarations())
    prefill = _Prefill(options.rounds, options.clock)
    with _bed(options.database, options.samples, options.seed) as bed:
        layers = bed.shape.decoder.layers
        whole = Reduction((1.0,) * layers, make_rule("attention-rank"))
        print(f"{options.samples} validation samples, unreduced {fmean(bed.scores(whole)):.3f}")
        for budget in options.budgets:
            target = bed.cost(uniform(layers, budget, FIRST_LAYER))
            print(f"\nFLOPs of {budget:.1%} from layer {FIRST_LAYER} on, {target / bed.flops(whole):.3f} of all\n")
            print(f"{_line(COLUMNS)}\n{_line(['---'] * len(COLUMNS))}", flush=True)
            for declaration in chosen:
                print(_row(bed, prefill, declaration, target, options.seed), flush=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="rules at equal FLOPs, against random tokens")
    parser.add_argument("--rules", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.25, 0.125], help="(default: 0.25 0.125)")
    parser.add_argument("--samples", type=int, default=1000, help="of the validation split (default: 1000)")
    parser.add_argument("--rounds", type=int, default=40, help="timed prefills of each kind (default: 40)")
    parser.add_argument("--clock", choices=["process", "wall"], default="process", help="(default: process)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples and of random tokens")
    parser.add_argument("--database", type=Path, help="file to keep scores in (default: none is kept)")
    return parser.parse_args(arguments)


@contextmanager
def _bed(path: Path | None, samples: int, seed: int) -> Iterator[Bed]:
    tables = {
        "name": "rules",
        "seed": seed,
        "model": {"id": "testbed:tiny-llava", "device": "cpu"},
        "data": {"source": "testbed", "search": {"samples": 1}, "validation": {"samples": samples}},
        "workers": {"threads": 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        file = path or Path(folder) / "rules.db"
        with StudyDatabase.open(f"sqlite:///{file}") as database:
            executor = LocalExecutor(StudyDefinition.model_validate(tables))
            try:
                split, shape = executor.split("validation"), executor.model().shape
                cost = SplitCost(shape, split.vision_tokens, split.text_tokens)
                yield Bed(shape, Evaluations(database, executor), cost)
            finally:
                executor.close()


def _row(bed: Bed, prefill: _Prefill, declaration: Declaration, target: float, seed: int) -> str:
    reduction = at_flops(bed, declaration.rule({}), declaration.default_places, target)
    places = tuple(dict.fromkeys("entry" if place == "vision" else place for place in declaration.default_places))
    random = make_rule("random", {"seed": seed})
    scores, chance = bed.scores(reduction), bed.scores(at_flops(bed, random, places, target))
    difference = paired_difference(scores, chance)
    print(f"{declaration.name}: done", file=sys.stderr, flush=True)
    return _line(
        [
            declaration.name,
            ", ".join(declaration.default_places),
            _levels(reduction),
            f"{bed.flops(reduction) / target:.2f}",
            f"{fmean(scores):.3f}",
            f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
            f"{prefill.dearer(reduction, of_random(reduction, random)):+.2f}",
        ]
    )


def at_flops(bed: Bed, rule: Rule, places: Sequence[Place], target: float) -> Reduction:
    """The schedule of a rule at its places that costs ``target``, or the nearest that its shape allows."""

    def cost(share: float) -> float:
        return bed.flops(shaped(bed.shape, rule, places, share))

    share = 0.0 if cost(0.0) >= target else 1.0 if cost(1.0) <= target else solve_rate(cost, target)
    return shaped(bed.shape, rule, places, share)


def shaped(shape: ModelShape, rule: Rule, places: Sequence[Place], share: float) -> Reduction:
    """Each place keeps ``share`` of what reaches it: the middle of the tower, the entry, decoder layer 3."""
    level, tower = 1.0, None
    if "vision" in places and shape.vision is not None:
        level *= share
        before = max((shape.vision.used_layers or shape.vision.layers) // 2, 1)
        tower = VisionReduction((1.0,) * before + (level,) * (shape.vision.layers - before), rule)
    level *= share if "entry" in places else 1.0
    first = (level,) * (FIRST_LAYER - 1)
    level *= share if "decoder" in places else 1.0
    return Reduction(
        keep_rates=first + (level,) * (shape.decoder.layers - len(first)),
        rule=rule if "decoder" in places else make_rule("attention-rank"),
        entry_rule=rule if "entry" in places else None,
        vision=tower,
    )


def of_random(reduction: Reduction, random: Rule) -> Reduction:
    """Random tokens with the same decoder rates; what a tower would drop is dropped at the entry."""
    entry = random if reduction.keep_rates[0] < 1.0 else None
    return replace(reduction, rule=random, entry_rule=entry, vision=None)


def _levels(reduction: Reduction) -> str:
    """The distinct rates that tokens pass, of tower and decoder."""
    rates = dict.fromkeys((*reduction.tower_rates, *reduction.keep_rates))
    return " > ".join(f"{rate:.3f}" for rate in rates if rate < 1.0)


class _Prefill:
    """Prefills of one question by the model of the testbed, tower included, timed side by side."""

    def __init__(self, rounds: int, clock: ClockName) -> None:
        self._rounds, self._clock = rounds, clock
        self._model: Any = load_checkpoint(testbed.checkpoint())
        (question,) = testbed.generate("validation", 1, seed=0)
        text = f"<image> {question.question}"
        self._prompt = dict(build_processor()(images=question.image, text=text, return_tensors="pt"))

    def dearer(self, first: Reduction, second: Reduction) -> float:
        """Milliseconds that a prefill under ``first`` takes more: the median over rounds of both in turn."""
        differences = [self._milliseconds(first) - self._milliseconds(second) for _ in range(self._rounds + 1)]
        return median(differences[1:])

    def _milliseconds(self, reduction: Reduction) -> float:
        with apply_reduction(self._model, reduction), torch.inference_mode():
            _, seconds = timed(lambda: self._model(**self._prompt, logits_to_keep=1), torch.device("cpu"))
        return 1000 * seconds.of(self._clock)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
