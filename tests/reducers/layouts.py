"""Random tokens for prompts that are drawn: a digit is a vision token of that image, t is text, a point is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from scheduler_search.reducers import Grid, Prompt, Tokens, reduce_tokens
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import ParameterValue, Place, make_rule

# Two samples of two images each, text in front, between and behind; the second one has padding in front.
LAYOUT = ("tt000000tt11111ttt", "....0000t11111111t")


def tokens_like(
    layout: Sequence[str],
    counts: tuple[int, ...],
    seed: int = 0,
    width: int = 12,
    grids: tuple[tuple[Grid, ...], ...] = (),
) -> Tokens:
    """Hidden states, keys of two heads, and attention of a class token, in float64."""
    images = np.array([[int(one) if one.isdigit() else -1 for one in row] for row in layout])
    real = np.array([[one != "." for one in row] for row in layout])
    prompt = Prompt(np.zeros(images.shape, dtype=np.int64), real, images >= 0, grids, images)
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*images.shape, width, generator=draw, dtype=torch.float64)
    return Tokens(
        hidden=hidden,
        vision=torch.from_numpy(images >= 0),
        position=torch.arange(images.shape[1]).expand(len(images), -1),
        attention=torch.rand(images.shape, generator=draw, dtype=torch.float64) / 10,
        keep=torch.tensor(counts),
        counts=counts,
        prompt=prompt,
        keys=torch.randn(*images.shape, 2, 4, generator=draw, dtype=torch.float64),
    )


def reduced(
    name: str, tokens: Tokens, place: Place = "entry", **parameters: ParameterValue
) -> list[dict[int, torch.Tensor]]:
    """Of each sample, what stands in each kept slot."""
    result = reduce_tokens(load_reducer(make_rule(name, parameters), place), tokens)
    return [
        {slot: row[slot] for slot in kept.nonzero()[:, 0].tolist()}
        for kept, row in zip(result.kept, result.hidden, strict=True)
    ]


def chosen(name: str, tokens: Tokens, place: Place = "entry", **parameters: ParameterValue) -> list[list[int]]:
    """Of each sample, the kept slots."""
    return [list(row) for row in reduced(name, tokens, place, **parameters)]


def slots_of(layout: str, kinds: str) -> list[int]:
    return [slot for slot, one in enumerate(layout) if one in kinds]


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def assert_same(found: dict[int, torch.Tensor], expected: dict[int, torch.Tensor]) -> None:
    assert list(found) == sorted(expected)
    for slot, value in expected.items():
        torch.testing.assert_close(found[slot], value, atol=1e-9, rtol=0)
