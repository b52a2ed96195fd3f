from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from scheduler_search.testbed import checkpoint, generate
from scheduler_search.testbed.model import VISION_TOKENS, load_checkpoint
from scheduler_search.testbed.prefill import Prefill
from scheduler_search.testbed.study import blind_accuracy, kendall_taus, mean_and_error, table, uniform_run


def test_kendall_is_scipys() -> None:
    scores = torch.rand(3, 2, VISION_TOKENS, generator=torch.Generator().manual_seed(0))
    expected = [
        np.mean([kendalltau(scores[layer, sample], scores[layer + 1, sample]).statistic for sample in range(2)])
        for layer in range(2)
    ]
    assert kendall_taus(scores) == pytest.approx(expected, abs=1e-6)


def test_mean_and_standard_error() -> None:
    mean, error = mean_and_error(np.array([1.0, 0.0, 1.0, 1.0]))
    assert (mean, error) == (0.75, 0.25)


def test_tables_are_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.slow
def test_the_blind_baseline_knows_what_needs_no_image() -> None:
    asked = [("where left of b2", "b1"), ("where above of b2", "a2"), ("where left of b2", "d4")]
    assert blind_accuracy(asked, learned=10_000) == pytest.approx(2 / 3)


def _readme_row(start: str) -> list[float]:
    """The figures of the first row of the README that begins so."""
    readme = (checkpoint().parent / "README.md").read_text()
    (row, *_) = [line for line in readme.splitlines() if line.startswith(f"| {start} |")]
    return [float(figure) for figure in re.findall(r"[+-]?\d+\.\d+", row.removeprefix(f"| {start} |"))]


@pytest.mark.slow
def test_the_readme_shows_what_the_shipped_checkpoint_does() -> None:
    # The same 1,000 questions: only rounding in other builds of torch can move an answer. 0.006 is six of them.
    prefill = Prefill(load_checkpoint(checkpoint()), generate("test", 1000, 0))
    full = prefill.run((VISION_TOKENS,) * prefill.layers)
    none = prefill.run((0,) * prefill.layers)
    by_attention, by_chance = (uniform_run(prefill, 0.25, 3, ranking) for ranking in ("attention", "random"))
    assert full.mean() == pytest.approx(_readme_row("all vision tokens")[0], abs=0.006)
    assert none.mean() == pytest.approx(_readme_row("no vision tokens")[0], abs=0.006)
    shown = _readme_row("0.25")
    assert by_attention.mean() == pytest.approx(shown[0], abs=0.006)
    assert by_chance.mean() == pytest.approx(shown[1], abs=0.006)
    assert full.mean() >= 0.95
    assert by_attention.mean() - by_chance.mean() >= 0.10
