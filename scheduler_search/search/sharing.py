"""How far a candidate runs like the others of its stage: where its hidden states are worth keeping for them.

Knows: keep counts of a split, and tokens per layer as the price of running it. Does not know: hidden states, or which
candidates will be tried; each counts alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy

from scheduler_search.search.stage import Candidate
from scheduler_search.search.steepness import SplitCounts

if TYPE_CHECKING:
    from scheduler_search.search.steepness import Integers


def branch_layers(candidates: Sequence[Integers], samples: Integers, text_tokens: int) -> tuple[int, ...]:
    """For each candidate, after how many first layers what it shares with others spares most tokens.

    Rates differ where counts do not: a steep sigmoid keeps the same tokens in many of its first layers (seed 003,
    equation 3, at its limit of twice the budget). The number of layers is the one at which (other candidates that keep
    the same in all of them) x (tokens that pass them) is largest, the layers that all candidates share not counted; 0
    for a candidate that shares no more than these.

    Args:
        candidates: keep counts of each, shape [S, L] for S different N (``SplitCounts.array``).
        samples: of each N, shape [S].
        text_tokens: of all samples together.
    """
    counts = numpy.stack(list(candidates))
    tokens = (counts * samples[:, None]).sum(axis=1) + text_tokens
    companions = _companions(counts)
    tokens[:, companions.min(axis=0) == len(counts) - 1] = 0
    spared = (companions * tokens.cumsum(axis=1))[:, :-1]  # behind the last layer there is nothing to run
    best = spared.argmax(axis=1)
    return tuple(int(layer) + 1 if row[layer] else 0 for row, layer in zip(spared, best, strict=True))


def _companions(counts: Integers) -> Integers:
    """How many other candidates keep the same up to each layer, shape [n, L], of ``counts`` [n, S, L]."""
    number, _, layers = counts.shape
    groups = numpy.zeros(number, dtype=numpy.int64)
    found = numpy.empty((number, layers), dtype=numpy.int64)
    for layer in range(layers):
        _, groups = numpy.unique(numpy.column_stack((groups, counts[:, :, layer])), axis=0, return_inverse=True)
        groups = groups.reshape(number)
        found[:, layer] = numpy.bincount(groups)[groups] - 1
    return found


def with_branches(candidates: Sequence[Candidate], counts: SplitCounts, text_tokens: int) -> Iterator[Candidate]:
    """The candidates of a stage, each with its ``branch_layers``."""
    layers = branch_layers([counts.array(one.keep_rates) for one in candidates], counts.samples, text_tokens)
    return (replace(one, branch_layers=branch) for one, branch in zip(candidates, layers, strict=True))
