from dataclasses import replace

import numpy as np
import pytest
import torch

from scheduler_search.reducers import Text
from tests.reducers.layouts import LAYOUT, chosen, cosine, slots_of, tokens_like


def max_min(hidden: torch.Tensor, slots: list[int], count: int) -> set[int]:
    """One token after the other, all distances anew each time."""

    def gap(slot: int, taken: list[int]) -> float:
        return min((1 - cosine(hidden[slot], hidden[other]) for other in taken if other != slot), default=9.0)

    taken: list[int] = []
    while len(taken) < count:
        left = [slot for slot in slots if slot not in taken]
        taken.append(max(left, key=lambda slot: gap(slot, taken or slots)))
    return set(taken)


def largest_determinant(hidden: torch.Tensor, slots: list[int], text: list[int], count: int) -> set[int]:
    """Relevance is the mean cosine to the text."""
    return best_determinant(hidden, {slot: mean_cosine(hidden[slot], hidden[text]) for slot in slots}, count)


def mean_cosine(token: torch.Tensor, text: torch.Tensor) -> float:
    return sum(cosine(token, word) for word in text) / len(text)


def best_determinant(hidden: torch.Tensor, relevance: dict[int, float], count: int) -> set[int]:
    """One token after the other, the determinant of the kernel of each possible next set from its definition."""
    low, high = min(relevance.values()), max(relevance.values())
    scaled = {slot: (value - low) / (high - low) for slot, value in relevance.items()}

    def determinant(chosen: list[int]) -> float:
        kernel = [[scaled[i] * cosine(hidden[i], hidden[j]) * scaled[j] for j in chosen] for i in chosen]
        return float(np.linalg.det(np.array(kernel)))

    taken: list[int] = []
    while len(taken) < count:
        left = [slot for slot in relevance if slot not in taken]
        taken.append(max(left, key=lambda slot: determinant([*taken, slot])))
    return set(taken)


@pytest.mark.parametrize("seed", range(4))
def test_divprune_takes_the_farthest_next(seed):
    tokens = tokens_like(LAYOUT, (4, 7), seed)
    expected = [max_min(tokens.hidden[row], slots_of(LAYOUT[row], "01"), tokens.counts[row]) for row in range(2)]
    assert chosen("divprune", tokens) == [sorted(one) for one in expected]


@pytest.mark.parametrize("seed", range(4))
def test_cdpruner_takes_what_raises_the_determinant_most(seed):
    tokens = tokens_like(LAYOUT, (4, 7), seed)
    expected = [
        largest_determinant(tokens.hidden[0], slots_of(LAYOUT[0], "01"), [15, 16, 17], 4),
        largest_determinant(tokens.hidden[1], slots_of(LAYOUT[1], "01"), [17], 7),
    ]
    assert chosen("cdpruner", tokens) == [sorted(one) for one in expected]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("relevance", ["near", "far"])
def test_cdpruner_compares_in_the_space_of_the_text_that_is_given(seed, relevance):
    """Relevance is of text and features, of real rows alone; what tokens differ in is their hidden states."""
    tokens, draw = tokens_like(LAYOUT, (4, 7), seed), torch.Generator().manual_seed(seed)
    features = torch.randn(*tokens.vision.shape, 5, generator=draw, dtype=torch.float64)
    text = Text(
        torch.randn(2, 3, 5, generator=draw, dtype=torch.float64), torch.tensor([[True] * 3, [True, False, False]])
    )
    expected = []
    for row in range(2):
        slots = slots_of(LAYOUT[row], "01")
        near = {slot: mean_cosine(features[row, slot], text.values[row, text.real[row]]) for slot in slots}
        signed = {slot: value if relevance == "near" else -value for slot, value in near.items()}
        expected.append(sorted(best_determinant(tokens.hidden[row], signed, tokens.counts[row])))
    found = chosen("cdpruner", replace(tokens, text=text, features=features), text_features="clip", relevance=relevance)
    assert found == expected


@pytest.mark.parametrize(("name", "slow"), [("divprune", max_min), ("cdpruner", largest_determinant)])
def test_under_a_quota_each_image_chooses_by_itself(name, slow):
    tokens = tokens_like(LAYOUT, (5, 6))
    for row, (shares, text) in enumerate((((3, 2), [15, 16, 17]), ((2, 4), [17]))):
        expected: set[int] = set()
        for image, share in enumerate(shares):
            words = (text,) if name == "cdpruner" else ()
            expected |= slow(tokens.hidden[row], slots_of(LAYOUT[row], str(image)), *words, share)
        assert chosen(name, tokens, quota="per-image")[row] == sorted(expected)


def test_of_two_equal_tokens_the_second_one_comes_last():
    for name, count in (("divprune", 6), ("cdpruner", 5)):
        tokens = tokens_like(("t0000000t",), (count,))
        tokens.hidden[0, 5] = tokens.hidden[0, 2]
        tokens.hidden[0, 8] = tokens.hidden[0, 2]  # the question, so that both are the most relevant
        kept = chosen(name, tokens)[0]
        assert 2 in kept
        assert 5 not in kept


def test_where_tokens_are_spanned_by_those_taken_relevance_decides():
    """Five tokens in a plane: after two of them, every determinant is zero."""
    tokens = tokens_like(("t00000t",), (4,), width=2)
    angles = torch.tensor([0.0, 0.1, 1.5, 0.7, 0.4, 1.2, 0.0], dtype=torch.float64)
    hidden = torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    tokens.hidden.copy_(hidden)
    # Relevance falls with the angle: slot 1 (0.1) is the most, slot 2 (1.5) the least relevant, r = 0.
    assert chosen("cdpruner", tokens) == [[1, 3, 4, 5]]


def test_without_text_all_tokens_are_equally_relevant():
    tokens = tokens_like(("000000",), (3,))
    assert len(chosen("cdpruner", tokens)[0]) == 3
