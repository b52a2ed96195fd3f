import pytest
import torch

from scheduler_search.reducers import Tokens
from tests.reducers.layouts import LAYOUT, assert_same, cosine, reduced, slots_of, tokens_like


def slow(tokens: Tokens, row: int, slots: list[int], count: int, neighbours: int, merge: str) -> dict:
    attention, hidden, keys = tokens.attention[row], tokens.hidden[row], tokens.keys[row].flatten(1)
    kept = sorted(slots, key=lambda slot: -attention[slot])[:count]
    result = {}
    for token in kept:
        others = [slot for slot in slots if slot != token and (merge == "published" or slot not in kept)]
        nearest = sorted(others, key=lambda slot: -cosine(keys[slot], keys[token]))[:neighbours]
        if merge == "published":
            result[token] = hidden[token] + sum(attention[slot] * hidden[slot] for slot in nearest)
        else:
            cluster = [token, *nearest]
            total = sum(attention[slot] for slot in cluster)
            result[token] = sum(attention[slot] * hidden[slot] for slot in cluster) / total
    return result


@pytest.mark.parametrize("merge", ["average", "published"])
@pytest.mark.parametrize("neighbours", [1, 3, 32])
def test_as_written_out(merge, neighbours):
    tokens = tokens_like(LAYOUT, (5, 6))
    found = reduced("prumerge", tokens, neighbours=neighbours, merge=merge)
    for row, count in enumerate(tokens.counts):
        assert_same(found[row], slow(tokens, row, slots_of(LAYOUT[row], "01"), count, neighbours, merge))


def test_by_hand():
    """Two tokens, one goes: attention 0.3 and 0.1 make the mean 3/4 and 1/4."""
    tokens = tokens_like(("t00t",), (1,), width=1)
    tokens.hidden[0, :, 0] = torch.tensor([7.0, 4.0, 8.0, 7.0])
    tokens.attention[0] = torch.tensor([0.5, 0.3, 0.1, 0.5])
    assert reduced("prumerge", tokens, merge="average")[0][1].item() == pytest.approx(0.75 * 4 + 0.25 * 8)
    assert reduced("prumerge", tokens)[0][1].item() == pytest.approx(4 + 0.1 * 8)


def test_tokens_that_nobody_looks_at_stay_as_they_are():
    tokens = tokens_like(("t0000t",), (2,))
    tokens.attention.zero_()
    assert_same(reduced("prumerge", tokens, merge="average")[0], {slot: tokens.hidden[0, slot] for slot in (1, 2)})
