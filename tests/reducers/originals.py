"""ToMe, EViT, FastV and MustDrop's merging a second time: one sample as lists of tokens, from the papers' descriptions.

Knows nothing of stages, batches or the code under test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Token:
    """A token of ToMe: where it was, its hidden state, its key averaged over heads, and the patches it stands for."""

    index: int
    value: FloatArray
    key: FloatArray
    size: float
    protected: bool = False


def bipartite_soft_matching(tokens: list[Token], merges: int) -> list[Token]:
    """One merge: unmerged tokens of set A first, then set B."""
    set_a, set_b = tokens[::2], tokens[1::2]
    edges = []  # each token of A to its most similar one of B
    for a, token in enumerate(set_a):
        norm = np.linalg.norm(token.key)
        cosines = [token.key @ other.key / norm / np.linalg.norm(other.key) for other in set_b]
        if cosines and not token.protected:
            edges.append((max(cosines), a, int(np.argmax(cosines))))
    most_similar = sorted(edges, reverse=True)[:merges]
    merged = {a for _, a, _ in most_similar}
    unmerged = [token for a, token in enumerate(set_a) if a not in merged]
    groups = [[set_a[a] for _, a, b in most_similar if b == place] for place in range(len(set_b))]
    return unmerged + [_averaged(token, group) for token, group in zip(set_b, groups, strict=True)]


def merged_to(tokens: list[Token], count: int) -> list[Token]:
    """Merges until ``count`` unprotected tokens are left, of at most half of them each; in the order of their indices.

    Between merges they are put where the staged rule has them, in the order of the slots.
    """
    left = sum(not token.protected for token in tokens)
    while left > max(count, 1):
        merges = min(left - count, left // 2)
        tokens = sorted(bipartite_soft_matching(tokens, merges), key=lambda token: token.index)
        left -= merges
    return tokens


def _averaged(token: Token, group: list[Token]) -> Token:
    members = [token, *group]
    size = sum(one.size for one in members)
    value = sum(one.size * one.value for one in members) / size
    key = sum(one.size * one.key for one in members) / size
    return Token(token.index, value, key, size)


def attentive_and_fused(values: FloatArray, attention: FloatArray, count: int, normalise: bool) -> FloatArray:
    """The ``count - 1`` most attended of N tokens by attention, then one token for all others: [count, D]."""
    order = np.argsort(-attention, kind="stable")
    attentive, others = order[: count - 1], order[count - 1 :]
    weights = attention[others] / (attention[others].sum() if normalise else 1.0)
    fused = sum(weight * values[other] for weight, other in zip(weights, others, strict=True))
    return np.stack([*values[attentive], fused])


def fastv(attention: FloatArray, image: range, count: int, rows: str) -> list[int]:
    """Image tokens that stay, of a whole layer's attention [H, S, S]: those that receive most, in their order."""
    mean_over_heads = attention.mean(axis=0)
    received = mean_over_heads[-1] if rows == "last" else mean_over_heads.mean(axis=0)
    ranked = sorted(image, key=lambda slot: -received[slot])
    return sorted(ranked[:count])


def cosine(one: FloatArray, other: FloatArray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def windows_merged(
    patches: Mapping[tuple[int, int], tuple[int, list[FloatArray]]], count: int, side: int
) -> dict[int, FloatArray]:
    """MustDrop's spatial merging of one image, as the reducer's module tells it.

    Args:
        patches: slot and values of the tokens at each row and column.

    Returns:
        {slot: mean} of the tokens that are left.
    """
    cells: dict[Any, tuple[int, list[FloatArray]]] = dict(patches)
    left = len(patches)
    while left > count:
        windows = {}
        for row, column in sorted(cells):
            windows.setdefault((row // side, column // side), []).append(cells[row, column])
        compared = []
        for place, members in windows.items():
            means = [np.mean(values, axis=0) for _, values in members]
            pairs = [cosine(one, other) for one, other in combinations(means, 2)]
            to_others = [sum(cosine(mean, other) for other in means if other is not mean) for mean in means]
            centre = int(np.argmax(to_others))
            goes = sorted(
                (index for index in range(len(members)) if index != centre),
                key=lambda index: -cosine(means[index], means[centre]),
            )
            compared.append((np.mean(pairs) if pairs else 0.0, place, members, centre, goes))
        after = {}
        for _, place, members, centre, goes in sorted(compared, key=lambda one: -one[0]):
            taken = goes[: left - count]
            left -= len(taken)
            slot, values = members[centre]
            after[place] = (slot, values + [value for index in taken for value in members[index][1]])
            if len(taken) < len(goes):  # reached, in part
                rest = [members[index] for index in goes if index not in taken]
                after.update({(place, number): one for number, one in enumerate(rest)})
        cells = after
    return {slot: np.mean(values, axis=0) for slot, values in cells.values()}
