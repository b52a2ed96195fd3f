"""Deconstructed equals original (seed 000, Table 1): ToMe, EViT and FastV as their papers tell them, not in stages.

The staged rules must choose the same tokens as ``originals`` and give them the same values.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.reducers import Grid, Prompt, Tokens, reduce_tokens
from scheduler_search.reducers.attention import Options, attention_scores, query_rows
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import make_rule
from tests.reducers.originals import Token, attentive_and_fused, fastv, merged_to
from tests.reducers.synthetic import Sample, tokens_of

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
    (count,) = tokens.counts
    kept = result.kept[0].clone()
    kept[: sample.before] = True
    if count == 0:
        assert not result.kept.any()
        return
    listed = merged_to(listed, count)
    assert kept.nonzero()[:, 0].tolist() == [token.index for token in listed]
    np.testing.assert_allclose(result.hidden[0, kept].numpy(), [token.value for token in listed], atol=1e-12)
    np.testing.assert_allclose(result.sizes[0, kept].numpy(), [token.size for token in listed])


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
