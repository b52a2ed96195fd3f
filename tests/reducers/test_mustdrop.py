from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.reducers import AttentionRows, Grid, Tokens, reduce_tokens
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import make_rule
from tests.reducers.originals import windows_merged
from tests.reducers.synthetic import Sample, tokens_of

MERGING = load_reducer(make_rule("mustdrop"), "vision")
IMAGES = st.builds(
    Sample,
    grids=st.builds(Grid, st.integers(1, 8), st.integers(1, 8)).map(lambda grid: (grid,)),
    before=st.integers(0, 1),
    after=st.just(0),
    keep=st.integers(0, 64),
    reduced=st.booleans(),
    seed=st.integers(0, 1 << 16),
)


@pytest.mark.parametrize("side", [2, 3])
@given(IMAGES)
@settings(max_examples=25)
def test_windows_merge_as_told(side, sample):
    reducer = load_reducer(make_rule("mustdrop", {"window": side}), "vision")
    tokens = tokens_of([sample], "vision", reducer.reads)
    result = reduce_tokens(reducer, tokens)
    (count,), (grid,) = tokens.counts, sample.grids
    assert result.kept.sum() == count
    if not count:
        return
    patches = {}
    for slot in tokens.vision[0].nonzero()[:, 0].tolist():
        place = divmod(int(tokens.position[0, slot]) - sample.before, grid.width)
        patches[place] = (slot, [tokens.hidden[0, slot].numpy()])
    expected = windows_merged(patches, count, side)
    assert result.kept[0].nonzero()[:, 0].tolist() == sorted(expected)
    for slot, value in expected.items():
        np.testing.assert_allclose(result.hidden[0, slot].numpy(), value, atol=1e-12)


def test_the_most_similar_window_merges_first():
    """Two windows of 2 x 2, side by side: the right one is flat."""
    reducer = load_reducer(make_rule("mustdrop", {"window": 2}), "vision")
    tokens = tokens_of([Sample((Grid(2, 4),), 0, 0, 5, False, 0)], "vision", reducer.reads)
    hidden = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden[:, [2, 3, 6, 7]] = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    result = reduce_tokens(reducer, replace(tokens, hidden=hidden))
    kept = result.kept[0].view(2, 4)
    assert kept[:, :2].all()
    assert kept[:, 2:].sum() == 1


def test_images_of_other_grids_do_not_matter():
    samples = [Sample((grid,), 1, 0, 3, False, seed) for seed, grid in enumerate([Grid(2, 7), Grid(5, 4), Grid(1, 4)])]
    together = reduce_tokens(MERGING, tokens_of(samples, "vision", MERGING.reads))
    for row, sample in enumerate(samples):
        alone = reduce_tokens(MERGING, tokens_of([sample], "vision", MERGING.reads))
        slots = alone.kept.shape[1]
        assert torch.equal(alone.kept[0], together.kept[row, -slots:])
        torch.testing.assert_close(alone.hidden[0], together.hidden[row, -slots:])


def test_a_window_beyond_the_grid_is_the_grid():
    found = []
    for side in (5, 1_000_000):
        reducer = load_reducer(make_rule("mustdrop", {"window": side}), "vision")
        found.append(
            reduce_tokens(reducer, tokens_of([Sample((Grid(2, 5),), 1, 0, 3, False, 0)], "vision", reducer.reads))
        )
    assert torch.equal(found[0].kept, found[1].kept)
    assert torch.equal(found[0].hidden, found[1].hidden)


def decoder_tokens(share: list[float], peak: list[float], keep: int) -> Tokens:
    """Vision tokens in front of two text tokens, with what the first pays and the mean of both."""
    reducer = load_reducer(make_rule("mustdrop"), "decoder")
    patches = len(share)
    tokens = tokens_of([Sample((Grid(1, patches),), 0, 2, keep, False, 0)], "decoder", reducer.reads)
    rows = torch.zeros(1, 2, patches + 2, dtype=torch.float64)
    rows[0, 0, :patches] = torch.tensor(peak)
    rows[0, 1, :patches] = 2 * torch.tensor(share) - torch.tensor(peak)
    weights = torch.full((1, 2), 0.5, dtype=torch.float64)
    attention = torch.matmul(weights[:, None], rows)[:, 0]
    return replace(
        tokens, attention=attention, rows=AttentionRows(rows, torch.tensor([[patches, patches + 1]]), weights)
    )


@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.integers(500, 1000)), min_size=1, max_size=12, unique_by=lambda x: x[0]
    ),
    st.floats(0.01, 1.0),
    st.sampled_from([1.0, 1.2, 5.0]),
)
@settings(max_examples=50)
def test_both_thresholds_of_the_paper_moved_together(drawn, individual, ratio):
    """What the paper drops under a pair of thresholds is what the rule drops when it drops that many."""
    share = [mean / 2000 for mean, _ in drawn]
    peak = [2 * mean * part / 1000 / 2000 for mean, part in drawn]
    total = sum(share)
    dropped = [one / total < ratio * individual and top < individual for one, top in zip(share, peak, strict=True)]
    tokens = decoder_tokens(share, peak, len(share) - sum(dropped))
    result = reduce_tokens(load_reducer(make_rule("mustdrop", {"ratio": ratio}), "decoder"), tokens)
    assert result.kept[0, : len(share)].tolist() == [not gone for gone in dropped]


def test_the_key_set_is_what_the_class_token_attends_to():
    reducer = load_reducer(make_rule("mustdrop"), "entry")
    tokens = tokens_of([Sample((Grid(3, 3),), 1, 2, 4, False, 0)], "entry", reducer.reads)
    result = reduce_tokens(reducer, tokens)
    attention = tokens.attention[0].masked_fill(~tokens.vision[0], -1)
    assert set(result.kept[0].nonzero()[:, 0].tolist()) == set(attention.topk(4).indices.tolist())
    assert torch.equal(result.hidden, tokens.hidden)
