"""``python -m scheduler_search.testbed.study CHECKPOINT``: the tables that tell what a checkpoint can tell apart.

Knows: which schedules are compared and how a table looks. Does not know: how a schedule is executed (``prefill``).
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scheduler_search.schedule.counts import keep_counts
from scheduler_search.schedule.families import sigmoid, uniform, withdraw
from scheduler_search.testbed.generator import draft, generate
from scheduler_search.testbed.model import VISION_TOKENS, load_checkpoint
from scheduler_search.testbed.prefill import Prefill, Ranking
from scheduler_search.testbed.questions import CATEGORIES

RATES = (0.75, 0.5, 0.25, 0.125, 0.0625)
FIRST_LAYERS = (2, 3, 4, 6, 8, 10)
BUDGETS = (0.125, 0.25)
STEEPNESSES = (0.2, 0.5, 1.0, 2.0, 4.0)
BLIND_QUESTIONS = 20_000

Correct = npt.NDArray[np.float64]
"""[n]: 1.0 where the answer is right."""


def mean_and_error(values: Correct) -> tuple[float, float]:
    """Mean and its standard error (of paired differences: pass the differences)."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def kendall_taus(scores: Tensor) -> list[float]:
    """[L - 1]: Kendall's tau-a between the scores [L, n, N] of consecutive layers, mean over samples."""
    taus = []
    for upper, lower in itertools.pairwise(scores):
        order = torch.sign(upper[:, :, None] - upper[:, None, :]) * torch.sign(lower[:, :, None] - lower[:, None, :])
        taus.append(float(order.sum((1, 2)).mean() / (VISION_TOKENS * (VISION_TOKENS - 1))))
    return taus


def blind_accuracy(asked: Sequence[tuple[str, str]], learned: int = BLIND_QUESTIONS) -> float:
    """Share of (question, answer) pairs that the most frequent answer to the same words gets.

    It is counted over the first ``learned`` questions of the train split; words that they lack count as wrong.
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(learned):
        words, answer = draft("train", 0, index).asked
        seen[" ".join(words)][answer] += 1
    right = sum(seen[question].most_common(1)[0][0] == answer for question, answer in asked if question in seen)
    return right / len(asked)


def uniform_run(prefill: Prefill, rate: float, first: int = 3, ranking: Ranking = "attention") -> Correct:
    """One keep rate from layer ``first`` on."""
    return prefill.run(keep_counts(uniform(prefill.layers, rate, first), VISION_TOKENS), ranking)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(correct: Correct) -> str:
    return f"{correct.mean():.3f}"


def _keep_rate_table(prefill: Prefill) -> str:
    head = ["keep rate", "tokens", *(f"{name}, layer {first}" for first in FIRST_LAYERS for name in ("attn", "rand"))]
    rows = []
    for rate in RATES:
        runs = [
            uniform_run(prefill, rate, first, ranking) for first in FIRST_LAYERS for ranking in ("attention", "random")
        ]
        rows.append([f"{rate:g}", f"{keep_counts((rate,), VISION_TOKENS)[0]}", *map(_share, runs)])
    return table(head, rows)


def _paired_ranking_table(prefill: Prefill) -> str:
    rows = []
    for rate in RATES:
        by_attention, by_chance = (uniform_run(prefill, rate, ranking=ranking) for ranking in ("attention", "random"))
        mean, error = mean_and_error(by_attention - by_chance)
        rows.append([f"{rate:g}", _share(by_attention), _share(by_chance), f"{mean:+.3f} ± {error:.3f}"])
    return table(["keep rate from layer 3", "attention", "random", "paired difference"], rows)


def _withdrawal_table(prefill: Prefill) -> str:
    runs = [
        prefill.run(keep_counts(withdraw(prefill.layers, kept), VISION_TOKENS)) for kept in range(prefill.layers + 1)
    ]
    return table(
        ["last layer with vision tokens", *map(str, range(prefill.layers + 1))], [["accuracy", *map(_share, runs)]]
    )


def _sigmoid_table(prefill: Prefill) -> str:
    rows = []
    for budget in BUDGETS:
        flat = uniform_run(prefill, budget)
        counts = keep_counts(uniform(prefill.layers, budget), VISION_TOKENS)
        rows.append([f"{budget:g}", "0 (uniform)", _share(flat), "", " ".join(map(str, counts))])
        for steepness in STEEPNESSES:
            counts = keep_counts(sigmoid(prefill.layers, budget, steepness), VISION_TOKENS)
            correct = prefill.run(counts)
            mean, error = mean_and_error(correct - flat)
            shown = f"{mean:+.3f} ± {error:.3f}"
            rows.append([f"{budget:g}", f"{steepness:g}", _share(correct), shown, " ".join(map(str, counts))])
    return table(["budget", "k", "accuracy", "minus uniform", "tokens per layer"], rows)


def _category_table(prefill: Prefill) -> str:
    runs = {
        "all tokens": prefill.run((VISION_TOKENS,) * prefill.layers),
        "25 % by attention": uniform_run(prefill, 0.25),
        "25 % at random": uniform_run(prefill, 0.25, ranking="random"),
        "none": prefill.run((0,) * prefill.layers),
    }
    rows = [
        [name, *(_share(correct[prefill.categories == category]) for category in CATEGORIES)]
        for name, correct in runs.items()
    ]
    return table(["vision tokens (from layer 3)", *CATEGORIES], rows)


def report(checkpoint: Path, count: int, seed: int) -> Iterator[str]:
    """The sections of the study in Markdown, each as soon as it is measured."""
    questions = generate("test", count, seed)
    model = load_checkpoint(checkpoint)
    prefill = Prefill(model, questions)
    full, error = mean_and_error(prefill.run((VISION_TOKENS,) * prefill.layers))
    none, none_error = mean_and_error(prefill.run((0,) * prefill.layers))
    blind = blind_accuracy([(question.question, question.answer) for question in questions])
    yield f"{count} questions of the test split, seed {seed}; tokens are dropped at the input of the layer named."
    yield table(
        ["", "accuracy"],
        [
            ["all vision tokens", f"{full:.3f} ± {error:.3f}"],
            ["no vision tokens", f"{none:.3f} ± {none_error:.3f}"],
            ["blind: the most frequent answer to the same words", f"{blind:.3f}"],
        ],
    )
    yield f"### By category\n\n{_category_table(prefill)}"
    yield f"### Attention ranking against random dropping\n\n{_paired_ranking_table(prefill)}"
    yield f"### Keep rate and layer\n\n{_keep_rate_table(prefill)}"
    yield f"### Withdrawal\n\n{_withdrawal_table(prefill)}"
    yield f"### P-Sigmoid\n\n{_sigmoid_table(prefill)}"
    taus = kendall_taus(prefill.scores()[:, :200])
    pairs = [f"{layer}-{layer + 1}" for layer in range(1, prefill.layers)]
    yield "### Kendall tau between the rankings of consecutive layers\n\n" + table(
        ["layers", *pairs], [["tau", *(f"{tau:.2f}" for tau in taus)]]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m scheduler_search.testbed.study", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="directory of a checkpoint of the testbed")
    parser.add_argument("--count", type=int, default=1000, help="questions of the test split (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the questions (default 0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    for section in report(options.checkpoint, options.count, options.seed):
        print(section, end="\n\n", flush=True)
    print(f"Measured in {time.monotonic() - start:.0f} s on {options.threads} thread(s).")


if __name__ == "__main__":
    main()
