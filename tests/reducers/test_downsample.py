import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from scheduler_search.reducers import Grid, reduce_tokens
from scheduler_search.reducers.downsample import resampling, sample_bilinear, sample_nearest, smaller_grid
from scheduler_search.reducers.load import load_reducer
from scheduler_search.reducers.pooling import pool_grid
from scheduler_search.rule import make_rule
from tests.reducers.test_pooling import GRIDS, tokens_of


def reduced(tokens, interpolation):
    rule = make_rule("downsample", {"interpolation": interpolation})
    result = reduce_tokens(load_reducer(rule, "entry"), tokens)
    return result.hidden[0][result.kept[0]]


@given(GRIDS, st.data())
def test_regions_and_their_slots_are_those_of_pooling(grid, data):
    count = data.draw(st.integers(1, grid.tokens))
    pooled = pool_grid(grid, count)
    for cut, largest in ((sample_bilinear, 4), (sample_nearest, 1)):
        sampled = cut(grid, count)
        taken = sampled.target >= 0
        assert np.array_equal(sampled.target[taken], pooled.target[taken])
        assert len(np.unique(sampled.target[taken])) == count
        assert np.array_equal(np.bincount(sampled.target[taken])[sampled.target[taken]], sampled.size[taken])
        assert sampled.size.max() <= largest


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_whole_kernels_are_bilinear_interpolation(kernel):
    grid = Grid(3 * kernel, 4 * kernel)
    tokens = tokens_of([(grid,)], [12])
    image = tokens.hidden[0, 2:-2].T.reshape(1, -1, grid.height, grid.width)
    expected = F.interpolate(image, (3, 4), mode="bilinear", align_corners=False).flatten(2)[0].T
    torch.testing.assert_close(reduced(tokens, "bilinear"), expected, atol=1e-6, rtol=0)


def test_nearest_takes_the_patch_at_the_centre_as_it_is():
    tokens = tokens_of([(Grid(4, 6),)], [6])
    patches = tokens.hidden[0, 2:-2]
    torch.testing.assert_close(reduced(tokens, "nearest"), patches[[0, 2, 4, 12, 14, 16]], atol=0, rtol=0)


def test_an_odd_region_is_its_middle_patch():
    tokens = tokens_of([(Grid(3, 3), Grid(3, 3))], [2])
    patches = tokens.hidden[0, 2:-2]
    torch.testing.assert_close(reduced(tokens, "bilinear"), patches[[4, 13]], atol=1e-6, rtol=0)


@given(GRIDS, st.data())
def test_the_smaller_grid_has_the_aspect_and_enough_tokens(grid, data):
    count = data.draw(st.integers(1, grid.tokens))
    small = smaller_grid(grid, count)
    assert count <= small.tokens <= grid.tokens
    assert small.height <= grid.height
    assert small.width <= grid.width
    scale = math.sqrt(count / grid.tokens)
    assert abs(small.height - scale * grid.height) < 1
    assert abs(small.width - scale * grid.width) < 1
    assert small.tokens < count + scale * max(grid.height, grid.width) + 1  # one row or column too many at most


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_whole_kernels_have_a_grid_of_their_own(kernel):
    grid = Grid(3 * kernel, 4 * kernel)
    assert smaller_grid(grid, 12) == Grid(3, 4)
    found = resampling(Grid(3, 4), grid, 12, make_rule("downsample"))
    assert found.cells.tolist() == [[cell] * 4 for cell in range(12)]
    assert np.array_equal(found.slots, np.unique(pool_grid(grid, 12).target))


@given(GRIDS, st.data(), st.sampled_from(["bilinear", "nearest"]))
def test_a_resampled_grid_is_the_down_sampled_one_at_slots_below(grid, data, interpolation):
    count = data.draw(st.integers(0, grid.tokens))
    small = smaller_grid(grid, max(count, 1))
    rule = make_rule("downsample", {"interpolation": interpolation})
    found = resampling(small, grid, count, rule)
    assert len(np.unique(found.slots)) == len(found.slots) == count
    assert np.array_equal(found.slots, np.sort(found.slots))
    if not count:
        return
    tokens = tokens_of([(small,)], [count])
    patches = tokens.hidden[0, 2:-2]
    resampled = patches[found.cells].mean(1)
    expected = reduced(tokens, interpolation)
    distances = torch.cdist(resampled.double(), expected.double())
    assert distances.min(1).values.max() < 1e-5  # in the order of the slots below, which may be another
    assert distances.min(0).values.max() < 1e-5
    row, column = np.divmod(found.slots, grid.width)
    own_row, own_column = np.divmod(found.cells[:, 0], small.width)
    assert np.all(abs(row + 0.5 - (own_row + 0.5) * grid.height / small.height) <= grid.height / small.height + 1)
    assert np.all(abs(column + 0.5 - (own_column + 0.5) * grid.width / small.width) <= grid.width / small.width + 1)
