from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.reducers import Grid, Prompt, Tokens, least_redundant
from scheduler_search.reducers.quota import image_shares
from scheduler_search.reducers.windows import least_attended_of_window, squares
from scheduler_search.rule import make_rule


def tokens_of(grids: tuple[Grid, ...], attention: torch.Tensor, vision: torch.Tensor | None = None) -> Tokens:
    """One sample: two slots of text, its images, one slot of text."""
    size = sum(grid.tokens for grid in grids)
    marks = np.array([[False, False, *[True] * size, False]])
    prompt = Prompt(np.zeros(marks.shape, np.int64), np.ones_like(marks), marks, (grids,))
    S = marks.shape[1]
    left = torch.from_numpy(marks) if vision is None else vision
    keep = torch.tensor([0])
    return Tokens(torch.zeros(1, S, 1), left, torch.arange(S)[None], attention, keep, (0,), prompt)


def kept(tokens: Tokens, count: int, **parameters: int | str) -> torch.Tensor:
    redundancy = least_attended_of_window(tokens, make_rule("fastv-window", parameters))
    return least_redundant(redundancy, tokens.vision, torch.tensor([count]))


def scores(slots: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, slots, generator=torch.Generator().manual_seed(seed))


def test_squares_are_cut_off_where_the_grid_ends():
    found = squares((Grid(3, 5), Grid(2, 2)), 2).tolist()
    assert found == [*[0, 0, 1, 1, 2], *[0, 0, 1, 1, 2], *[3, 3, 4, 4, 5], *[6, 6, 6, 6]]


@pytest.mark.parametrize(("count", "each"), [(144, 9), (128, 8), (64, 4)])
def test_the_paper_s_budgets_are_whole_numbers_in_each_window(count, each):
    grid = Grid(24, 24)
    tokens = tokens_of((grid,), scores(579))
    chosen = kept(tokens, count)[0, 2:-1]
    shares = Counter(squares((grid,), 6)[chosen.numpy()].tolist())
    assert set(shares.values()) == {each}
    assert len(shares) == 16


def test_within_a_window_the_most_attended_stay():
    attention = scores(19)
    chosen = kept(tokens_of((Grid(4, 4),), attention), 8, window=2)[0, 2:-1].view(4, 4)
    for top in (0, 2):
        for left in (0, 2):
            window = attention[0, 2:-1].view(4, 4)[top : top + 2, left : left + 2].flatten()
            marked = chosen[top : top + 2, left : left + 2].flatten()
            assert window[marked].min() > window[~marked].max()
            assert marked.sum() == 2


def test_what_is_left_over_goes_to_the_best_of_all_windows():
    """Not to the first windows, which are all at the top of the image."""
    attention = torch.zeros(1, 19)
    attention[0, 2 + 15], attention[0, 2 + 8] = 0.9, 0.8
    chosen = kept(tokens_of((Grid(4, 4),), attention), 2, window=2)
    assert chosen[0].nonzero()[:, 0].tolist() == [2 + 8, 2 + 15]


@pytest.mark.parametrize("shape", ["square", "run"])
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_shares_are_exact_and_nested(shape, data):
    grids = tuple(Grid(*data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))) for _ in range(2))
    side, size = data.draw(st.integers(1, 4)), grids[0].tokens + grids[1].tokens
    first = data.draw(st.integers(0, size))
    second = data.draw(st.integers(0, first))
    parameters = {"window": side, "shape": shape}
    before = kept(tokens_of(grids, scores(size + 3)), first, **parameters)
    after = kept(tokens_of(grids, scores(size + 3, 1), before), second, **parameters)
    assert (int(before.sum()), int(after.sum())) == (first, second)
    groups = squares(grids, side) if shape == "square" else np.arange(size) // side**2
    sizes = np.bincount(groups)
    for chosen, count in ((before, first), (after, second)):
        # Equal seats aside, which here go to the better tokens, shares are those of images of these sizes.
        shares = np.bincount(groups[chosen[0, 2:-1].numpy()], minlength=len(sizes))
        for window in set(sizes.tolist()):
            alike = sizes == window
            assert sorted(shares[alike])[0] >= sorted(shares[alike])[-1] - 1
        assert abs(shares - np.array(image_shares(sizes.tolist(), count))).max() <= 1


def test_one_window_is_the_plain_ranking():
    attention = scores(39)
    tokens = tokens_of((Grid(6, 6),), attention)
    assert torch.equal(kept(tokens, 7), least_redundant(-attention, tokens.vision, torch.tensor([7])))
