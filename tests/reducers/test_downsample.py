import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from scheduler_search.reducers import Grid, reduce_tokens
from scheduler_search.reducers.downsample import sample_bilinear, sample_nearest
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
