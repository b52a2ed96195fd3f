from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from scheduler_search.reducers import Grid, Prompt, Tokens, reduce_tokens
from scheduler_search.reducers.load import load_reducer
from scheduler_search.reducers.pooling import pool_grid, pool_images, share_regions
from scheduler_search.rule import make_rule


def reduced(tokens):
    result = reduce_tokens(load_reducer(make_rule("pooling"), "entry"), tokens)
    return result.kept, result.hidden


SIDES = st.integers(1, 12)
GRIDS = st.builds(Grid, SIDES, SIDES)


@given(GRIDS, st.data())
def test_a_grid_is_cut_into_exactly_n_near_equal_rectangles(grid, data):
    count = data.draw(st.integers(1, grid.tokens))
    regions = pool_grid(grid, count)
    stand_ins = np.unique(regions.target)
    assert len(stand_ins) == count
    assert np.array_equal(regions.target[stand_ins], stand_ins)  # each stands for its own region
    assert np.array_equal(np.bincount(regions.target, minlength=grid.tokens)[regions.target], regions.size)
    target = regions.target.reshape(grid.height, grid.width)
    for stand_in in stand_ins:
        rows, columns = np.nonzero(target == stand_in)
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert height * width == len(rows)  # a full rectangle


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_whole_kernels_are_average_pooling(rows, columns, kernel):
    grid = Grid(rows * kernel, columns * kernel)
    tokens = tokens_of([(grid,)], [rows * columns])
    kept, hidden = reduced(tokens)
    image = tokens.hidden[0, 2:-2].T.reshape(1, -1, grid.height, grid.width)
    expected = F.avg_pool2d(image, kernel).flatten(2)[0].T
    torch.testing.assert_close(hidden[0][kept[0]], expected, atol=1e-6, rtol=0)


@given(GRIDS)
def test_all_tokens_is_the_identity(grid):
    regions = pool_grid(grid, grid.tokens)
    assert np.array_equal(regions.target, np.arange(grid.tokens))
    assert (regions.size == 1).all()


@given(st.lists(st.integers(1, 700), min_size=1, max_size=6), st.data())
def test_images_share_in_proportion(sizes, data):
    count = data.draw(st.integers(0, sum(sizes)))
    shares = share_regions(tuple(sizes), count)
    assert sum(shares) == count
    for share, size in zip(shares, sizes, strict=True):
        assert share <= size
        assert abs(share - count * size / sum(sizes)) < 1


def tokens_of(images: list[tuple[Grid, ...]], counts: list[int]) -> Tokens:
    """Two text tokens before and after each sample's images, left-padded."""
    sizes = [sum(grid.tokens for grid in grids) for grids in images]
    length = max(sizes) + 4
    vision = np.zeros((len(images), length), dtype=np.bool_)
    real = np.zeros_like(vision)
    for row, size in enumerate(sizes):
        real[row, length - size - 4 :] = True
        vision[row, length - size - 2 : length - 2] = True
    prompt = Prompt(np.zeros(vision.shape, dtype=np.int64), real, vision, tuple(images))
    hidden = torch.randn(len(images), length, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    position = torch.arange(length).expand(len(images), -1)
    keep = torch.tensor(counts)
    return Tokens(hidden, torch.from_numpy(vision), position, None, keep, tuple(counts), prompt)


@given(st.lists(st.lists(GRIDS, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3), st.data())
def test_counts_are_exact_mass_is_kept_and_a_batch_is_its_samples(images, data):
    counts = [data.draw(st.integers(0, sum(grid.tokens for grid in grids))) for grids in images]
    tokens = tokens_of(images, counts)
    kept, hidden = reduced(tokens)
    assert kept.sum(1).tolist() == counts
    assert torch.equal(hidden[~kept], tokens.hidden[~kept])
    for row, grids in enumerate(images):
        if not counts[row]:
            continue
        regions = pool_images(grids, counts[row])
        sizes = torch.from_numpy(regions.size)[kept[row][tokens.vision[row]]].double()
        served = torch.from_numpy(regions.target >= 0)  # images without a region are dropped
        mass = tokens.hidden[row][tokens.vision[row]][served].sum(0)
        torch.testing.assert_close((hidden[row][kept[row]] * sizes[:, None]).sum(0), mass, atol=1e-9, rtol=0)
        alone = tokens_of([grids], [counts[row]])
        length = alone.hidden.shape[1]
        alone = replace(alone, hidden=tokens.hidden[row : row + 1, -length:])
        alone_kept, alone_hidden = reduced(alone)
        assert torch.equal(alone_kept[0], kept[row, -length:])
        torch.testing.assert_close(alone_hidden[0], hidden[row, -length:], atol=1e-12, rtol=0)


def test_more_images_than_tokens():
    tokens = tokens_of([(Grid(2, 2), Grid(2, 2), Grid(2, 2))], [2])
    kept, hidden = reduced(tokens)
    assert int(kept.sum()) == 2
    expected = torch.stack([tokens.hidden[0, 2:6].mean(0), tokens.hidden[0, 6:10].mean(0)])
    torch.testing.assert_close(hidden[0][kept[0]], expected)


@pytest.mark.parametrize(("count", "stand_ins"), [(4, [0, 2, 8, 10]), (1, [5]), (2, [4, 6])])
def test_the_stand_in_is_the_central_patch(count, stand_ins):
    assert np.unique(pool_grid(Grid(4, 4), count).target).tolist() == stand_ins


def test_averages_of_bfloat16_are_rounded_once():
    tokens = tokens_of([(Grid(6, 6),)], [4])
    low = replace(tokens, hidden=tokens.hidden.to(torch.bfloat16))
    kept, hidden = reduced(low)
    image = low.hidden[0, 2:-2].float().T.reshape(1, 3, 6, 6)
    assert torch.equal(hidden[0][kept[0]], F.avg_pool2d(image, 3).flatten(2)[0].T.to(torch.bfloat16))


# -- in the decoder


def pooled_in_the_decoder(tokens: Tokens) -> Tokens:
    result = reduce_tokens(load_reducer(make_rule("pooling"), "decoder"), tokens)
    assert result.kept.sum(1).tolist() == list(tokens.counts)
    return replace(tokens, vision=result.kept, hidden=result.hidden)


@given(st.lists(st.lists(GRIDS, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3), st.data())
def test_the_first_layer_that_pools_does_what_the_entry_does(images, data):
    tokens = tokens_of(images, [data.draw(st.integers(1, sum(grid.tokens for grid in grids))) for grids in images])
    kept, hidden = reduced(tokens)
    found = pooled_in_the_decoder(tokens)
    assert torch.equal(found.vision, kept)
    torch.testing.assert_close(found.hidden, hidden, atol=1e-6, rtol=0)


@given(GRIDS, st.data())
def test_later_layers_pool_what_is_left(grid, data):
    first = data.draw(st.integers(1, grid.tokens))
    second = data.draw(st.integers(1, first))
    once = pooled_in_the_decoder(tokens_of([(grid,)], [first]))
    twice = pooled_in_the_decoder(replace(once, keep=torch.tensor([second]), counts=(second,)))
    assert not (twice.vision & ~once.vision).any()
    low, high = once.hidden[once.vision].amin(0) - 1e-6, once.hidden[once.vision].amax(0) + 1e-6
    assert ((twice.hidden[twice.vision] >= low) & (twice.hidden[twice.vision] <= high)).all()


def test_four_means_of_four_are_the_mean_of_all():
    tokens = tokens_of([(Grid(4, 4),)], [4])
    once = pooled_in_the_decoder(tokens)
    twice = pooled_in_the_decoder(replace(once, keep=torch.tensor([1]), counts=(1,)))
    assert twice.vision[0].nonzero()[:, 0].tolist() == [2]  # of 0, 2, 8 and 10, all as far from the centre: the first
    torch.testing.assert_close(twice.hidden[0, 2], tokens.hidden[0, 2:-2].mean(0), atol=1e-6, rtol=0)


def test_a_region_without_a_token_leaves_its_place_to_the_next():
    tokens = tokens_of([(Grid(1, 4),)], [2])  # regions 0-1 and 2-3
    left = torch.zeros_like(tokens.vision)
    left[0, [2, 3, 4]] = True
    found = pooled_in_the_decoder(replace(tokens, vision=left & (torch.arange(8) < 4), keep=torch.tensor([2])))
    assert found.vision[0].nonzero()[:, 0].tolist() == [2, 3]
    found = pooled_in_the_decoder(replace(tokens, vision=left, keep=torch.tensor([2])))
    assert found.vision[0].nonzero()[:, 0].tolist() == [2, 4]
    torch.testing.assert_close(found.hidden[0, 2], tokens.hidden[0, 2:4].mean(0), atol=1e-6, rtol=0)
