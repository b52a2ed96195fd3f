import pytest
import torch

from scheduler_search.reducers import Tokens
from tests.reducers.layouts import LAYOUT, assert_same, cosine, reduced, slots_of, tokens_like


def slow(tokens: Tokens, row: int, slots: list[int], dominants: int, contextuals: int, merge: str) -> dict:
    attention, hidden, keys = tokens.attention[row], tokens.hidden[row], tokens.keys[row].mean(dim=1)
    dominant = sorted(slots, key=lambda slot: -attention[slot])[:dominants]
    rest = [slot for slot in slots if slot not in dominant]
    step = max(len(rest) // contextuals, 1) if contextuals else 1
    targets = rest[::step][:contextuals]
    groups = {target: [] for target in targets}
    for slot in rest:
        if slot not in targets and targets:
            groups[max(targets, key=lambda target: cosine(keys[slot], keys[target]))].append(slot)
    result = {slot: hidden[slot] for slot in dominant}
    for target, others in groups.items():
        if merge == "average":
            result[target] = torch.stack([hidden[slot] for slot in [target, *others]]).mean(dim=0)
        else:
            result[target] = hidden[target] + sum(hidden[slot] for slot in others) / max(len(others), 1)
    return result


@pytest.mark.parametrize("merge", ["average", "published"])
@pytest.mark.parametrize(("share", "contextuals"), [(0.0, (0, 0)), (0.4, (2, 2)), (0.5, (3, 3)), (1.0, (5, 6))])
def test_as_written_out(merge, share, contextuals):
    tokens = tokens_like(LAYOUT, (5, 6))
    found = reduced("visionzip", tokens, contextual=share, merge=merge)
    for row, count in enumerate(tokens.counts):
        slots = slots_of(LAYOUT[row], "01")
        assert_same(found[row], slow(tokens, row, slots, count - contextuals[row], contextuals[row], merge))


def test_under_a_quota_each_image_has_both_kinds():
    tokens = tokens_like(LAYOUT, (5, 6))
    found = reduced("visionzip", tokens, contextual=0.5, quota="per-image")
    # Of 3 + 2 and of 2 + 4 tokens, halves rounded up are contextual.
    for row, shares in enumerate((((1, 2), (1, 1)), ((1, 1), (2, 2)))):
        expected = {}
        for image, (dominants, contextuals) in enumerate(shares):
            slots = slots_of(LAYOUT[row], str(image))
            expected |= slow(tokens, row, slots, dominants, contextuals, "published")
        assert_same(found[row], expected)


def test_the_papers_split():
    """54 dominant and 10 contextual tokens, 162 and 30."""
    for count, contextuals in ((64, 10), (192, 30)):
        tokens = tokens_like(("t" + "0" * 576 + "t",), (count,), width=2)
        found = reduced("visionzip", tokens)[0]
        untouched = sum(torch.equal(value, tokens.hidden[0, slot]) for slot, value in found.items())
        assert len(found) == count
        assert untouched >= count - contextuals
        assert untouched < count - contextuals + 5  # a few contextual tokens may have received nothing
