import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.reducers import least_redundant
from scheduler_search.reducers.selection import by_keys, quantile

SCORES = st.floats(-5, 5, width=32) | st.sampled_from([0.0, float("nan"), float("inf"), float("-inf")])


@st.composite
def batches(draw):
    """Scores with ties, NaN and infinities, a vision mask, and a count per sample."""
    samples, slots = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    scores = draw(st.lists(st.lists(SCORES, min_size=slots, max_size=slots), min_size=samples, max_size=samples))
    vision = draw(st.lists(st.lists(st.booleans(), min_size=slots, max_size=slots), min_size=samples, max_size=samples))
    keep = [draw(st.integers(0, sum(row))) for row in vision]
    return torch.tensor(scores), torch.tensor(vision), torch.tensor(keep)


@given(batches())
def test_the_count_is_exact_and_only_vision_is_chosen(drawn):
    scores, vision, keep = drawn
    kept = least_redundant(scores, vision, keep)
    assert torch.equal(kept.sum(1), keep)
    assert not (kept & ~vision).any()


@given(batches())
def test_nobody_dropped_is_less_redundant_than_somebody_kept(drawn):
    scores, vision, keep = drawn
    scores = torch.nan_to_num(scores, nan=9.0, posinf=9.0, neginf=-9.0)
    kept = least_redundant(scores, vision, keep)
    for row in range(len(scores)):
        chosen, dropped = scores[row][kept[row]], scores[row][vision[row] & ~kept[row]]
        if len(chosen) and len(dropped):
            assert chosen.max() <= dropped.min()


@given(batches())
def test_a_batch_is_its_samples_and_choices_are_nested(drawn):
    scores, vision, keep = drawn
    kept = least_redundant(scores, vision, keep)
    for row in range(len(scores)):
        alone = least_redundant(scores[row : row + 1], vision[row : row + 1], keep[row : row + 1])
        assert torch.equal(alone[0], kept[row])
    fewer = least_redundant(scores, vision, (keep - 1).clamp(min=0))
    assert not (fewer & ~kept).any()


def test_ties_go_to_the_earlier_token():
    kept = least_redundant(torch.zeros(1, 6), torch.tensor([[0, 1, 1, 0, 1, 1]]).bool(), torch.tensor([2]))
    assert kept.tolist() == [[False, True, True, False, False, False]]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-2, 2), st.integers(0, 1)), min_size=1, max_size=12))
def test_keys_count_in_their_order(drawn):
    redundancy = by_keys(*torch.tensor(drawn, dtype=torch.float64).T[:, None])[0].tolist()
    expected = sorted(range(len(drawn)), key=lambda slot: (drawn[slot], slot))  # of equal keys, the later goes first
    assert sorted(range(len(drawn)), key=lambda slot: redundancy[slot]) == expected


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.998, 1.0])
@pytest.mark.parametrize("counts", [(9, 1, 4), (2, 0, 3), (1, 1, 1)])
def test_quantiles_are_those_of_torch_among_some_slots(counts, share):
    values = torch.randn(3, 4, 9, dtype=torch.float64)
    among = torch.stack([torch.randperm(9) < count for count in counts])
    found = quantile(values, among, counts, share)
    for sample, count in enumerate(counts):
        if count:
            expected = values[sample][:, among[sample]].quantile(share, dim=1)
            torch.testing.assert_close(found[sample], expected)


def test_a_quantile_between_two_is_reached_by_the_upper_one():
    """501 values have their 0.998 quantile at the second largest: two reach it, though 0.998 is not a binary number."""
    values = torch.randn(1, 3, 501)
    found = quantile(values, torch.ones(1, 501, dtype=torch.bool), [501], 0.998)
    assert (values >= found[..., None]).sum(dim=2).tolist() == [[2, 2, 2]]
