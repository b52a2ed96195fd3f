"""Deconstructed equals original (seed 000, Table 1): ToMe, EViT and FastV as their papers tell them, not in stages.

The implementations here know one sample as lists of tokens and were written from the papers' descriptions; the staged
rules must choose the same tokens and give them the same values.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.reducers import Grid, Prompt, Tokens, reduce_tokens
from scheduler_search.reducers.attention import Options, attention_scores, query_rows
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import make_rule
from tests.reducers.synthetic import Sample, tokens_of

FloatArray = npt.NDArray[np.float64]
IMAGES = st.builds(
    Sample,
    grids=st.builds(Grid, st.integers(1, 6), st.integers(1, 6)).map(lambda grid: (grid,)),
    before=st.integers(0, 1),
    after=st.just(0),
    keep=st.integers(0, 40),
    reduced=st.booleans(),
    seed=st.integers(0, 1 << 16),
)
MANY = settings(max_examples=50)


def in_the_tower(rule: str, sample: Sample, **parameters: bool) -> tuple[Tokens, object]:
    """An image's tokens, and what a rule makes of them."""
    reducer = load_reducer(make_rule(rule, parameters), "vision")
    tokens = tokens_of([sample], "vision", reducer.reads)
    return tokens, reduce_tokens(reducer, tokens)


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


def _averaged(token: Token, group: list[Token]) -> Token:
    members = [token, *group]
    size = sum(one.size for one in members)
    value = sum(one.size * one.value for one in members) / size
    key = sum(one.size * one.key for one in members) / size
    return Token(token.index, value, key, size)


@given(IMAGES)
@MANY
def test_tome(sample):
    tokens, result = in_the_tower("tome", sample)
    present = tokens.vision[0].clone()
    present[: sample.before] = True
    hidden, keys, sizes = (one[0].numpy() for one in (tokens.hidden, tokens.keys.mean(dim=2), tokens.sizes))
    listed = [
        Token(slot, hidden[slot], keys[slot], sizes[slot], slot < sample.before)
        for slot in present.nonzero()[:, 0].tolist()
    ]
    left, (count,) = int(tokens.vision.sum()), tokens.counts
    while left > max(count, 1):  # at most half of the tokens in one merge; more merges where the drop is larger
        merges = min(left - count, left // 2)
        # Merged tokens are put where the staged rule has them: in the order of the slots.
        listed = sorted(bipartite_soft_matching(listed, merges), key=lambda token: token.index)
        left -= merges
    kept = result.kept[0].clone()
    kept[: sample.before] = True
    if count == 0:
        assert not result.kept.any()
        return
    assert kept.nonzero()[:, 0].tolist() == [token.index for token in listed]
    np.testing.assert_allclose(result.hidden[0, kept].numpy(), [token.value for token in listed], atol=1e-12)
    np.testing.assert_allclose(result.sizes[0, kept].numpy(), [token.size for token in listed])


def attentive_and_fused(values: FloatArray, attention: FloatArray, count: int, normalise: bool) -> FloatArray:
    """The ``count - 1`` most attended of N tokens by attention, then one token for all others: [count, D]."""
    order = np.argsort(-attention, kind="stable")
    attentive, others = order[: count - 1], order[count - 1 :]
    weights = attention[others] / (attention[others].sum() if normalise else 1.0)
    fused = sum(weight * values[other] for weight, other in zip(weights, others, strict=True))
    return np.stack([*values[attentive], fused])


@given(IMAGES.map(lambda sample: Sample(sample.grids, 1, 0, sample.keep, sample.reduced, sample.seed)), st.booleans())
@MANY
def test_evit(sample, normalise):
    tokens, result = in_the_tower("evit", sample, normalise=normalise)
    (present,) = tokens.vision
    values, attention = tokens.hidden[0, present].numpy(), tokens.attention[0, present].numpy()
    (count,) = tokens.counts
    found, by_attention = result.hidden[0, result.kept[0]].numpy(), tokens.attention[0, result.kept[0]].numpy()
    assert len(found) == count
    if count == len(values):
        np.testing.assert_array_equal(found, values)
    elif count:
        expected = attentive_and_fused(values, attention, count, normalise)
        np.testing.assert_allclose(found[np.argsort(-by_attention, kind="stable")], expected, atol=1e-12)


def fastv(attention: FloatArray, image: range, count: int, rows: str) -> list[int]:
    """Image tokens that stay, of a whole layer's attention [H, S, S]: those that receive most, in their order."""
    mean_over_heads = attention.mean(axis=0)
    received = mean_over_heads[-1] if rows == "last" else mean_over_heads.mean(axis=0)
    ranked = sorted(image, key=lambda slot: -received[slot])
    return sorted(ranked[:count])


@pytest.mark.parametrize("rows", ["last", "every"])
@given(st.integers(0, 4), st.integers(1, 20), st.integers(1, 5), st.integers(0, 1 << 16), st.data())
@MANY
def test_fastv(rows, before, patches, after, seed, data):
    count = data.draw(st.integers(0, patches))
    slots = before + patches + after
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 1, 3, slots, 8, generator=generator, dtype=torch.float64)
    logits = (query @ key.transpose(2, 3))[0].numpy() / np.sqrt(8)
    seen = np.exp(logits) * np.tril(np.ones((slots, slots)))
    expected = fastv(seen / seen.sum(-1, keepdims=True), range(before, before + patches), count, rows)

    vision = np.zeros((1, slots), dtype=np.bool_)
    vision[:, before : before + patches] = True
    prompt = Prompt(np.zeros(vision.shape, np.int64), np.ones_like(vision), vision)
    reducer = load_reducer(make_rule("fastv", {"query_rows": rows}), "decoder")
    asked = torch.from_numpy(query_rows(prompt, reducer.reads.rows)).nonzero()[None, :, 1]
    weights = torch.full(asked.shape, 1 / asked.shape[1], dtype=torch.float64)
    scores = attention_scores(query, key, None, asked, weights, Options(1 / np.sqrt(8), reducer.reads.heads))
    hidden, position = torch.randn(1, slots, 4, generator=generator), torch.arange(slots)[None]
    tokens = Tokens(hidden, torch.from_numpy(vision), position, scores, torch.tensor([count]), (count,), prompt)
    result = reduce_tokens(reducer, tokens)
    assert result.kept[0].nonzero()[:, 0].tolist() == expected
    assert torch.equal(result.hidden, hidden)  # pruned, nothing of them is left
