import torch

from scheduler_search.reducers.groups import Groups, highest, part_of
from scheduler_search.rule import make_rule
from tests.reducers.layouts import LAYOUT, slots_of, tokens_like


def test_a_sample_is_one_group():
    tokens = tokens_like(LAYOUT, (5, 6))
    groups = Groups.of(tokens, make_rule("divprune"))
    assert groups.keep.tolist() == [[5], [6]]
    assert torch.equal(groups.member, tokens.vision)
    assert groups.sample.tolist() == [0, 1]


def test_under_a_quota_each_image_is_a_group_with_its_share():
    groups = Groups.of(tokens_like(LAYOUT, (5, 6)), make_rule("divprune", {"quota": "per-image"}))
    assert groups.keep.tolist() == [[3, 2], [2, 4]]
    assert groups.sample.tolist() == [0, 0, 1, 1]
    for number, member in enumerate(groups.member):
        assert member.nonzero()[:, 0].tolist() == slots_of(LAYOUT[number // 2], str(number % 2))
    together = groups.together()
    assert together[0, 2, 3]
    assert not together[0, 2, 10], "two images"
    assert not together[0, 0, 1], "text is in no group"
    numbers = torch.arange(4.0)[:, None].expand(-1, len(LAYOUT[0]))
    assert groups.gathered(numbers.contiguous())[1, [4, 9]].tolist() == [2.0, 3.0]


def test_parts_are_rounded_and_ties_go_to_the_earlier():
    assert part_of(torch.tensor([0, 1, 5, 64, 192]), 0.15625).tolist() == [0, 0, 1, 10, 30]
    assert part_of(torch.tensor([1, 3]), 0.5).tolist() == [1, 2]
    among = torch.tensor([[True, True, False, True]])
    assert highest(torch.tensor([[1.0, 2.0, 9.0, 2.0]]), among, torch.tensor([1])).tolist() == [
        [False, True, False, False]
    ]
