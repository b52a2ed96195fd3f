import math
from dataclasses import replace
from statistics import pvariance

import pytest
import torch

from scheduler_search.reducers import Grid, Text, Tokens
from scheduler_search.reducers.affinity import local_affinity
from scheduler_search.reducers.visiontrim import weigh_by_variance
from scheduler_search.rule import Place, Rule, make_rule
from tests.reducers.layouts import assert_same, chosen, reduced, slots_of, tokens_like

LAYOUT = ("tt000000t1111tt", "...000000000ttt")
GRIDS = ((Grid(2, 3), Grid(2, 2)), (Grid(3, 3),))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def product(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other) / math.sqrt(len(one))


def asked_for(text: list[torch.Tensor], vision: list[torch.Tensor]) -> list[float]:
    """Eq. 7 and 13: what each vision token gets of the text, on average."""
    rows = [softmax([product(word, token) for token in vision]) for word in text]
    return [sum(row[token] for row in rows) / len(rows) for token in range(len(vision))]


def dominant(tokens: Tokens, row: int, slots: list[int], count: int, place: Place, rule: Rule) -> list[int]:
    """Eq. 1 to 6, and 13."""
    hidden, text = tokens.hidden[row], words(tokens, row)
    if place == "entry":
        seen = softmax([float(tokens.attention[row, slot]) for slot in slots])
    else:
        seen = asked_for(text, [hidden[slot] for slot in slots])
    local = [float(local_affinity(tokens, rule)[row, slot]) for slot in slots]
    alpha = pvariance(local) / (pvariance(seen) + pvariance(local))
    scores = {slot: alpha * seen[at] + (1 - alpha) * local[at] for at, slot in enumerate(slots)}
    return sorted(slots, key=lambda slot: -scores[slot])[:count]


def complement(tokens: Tokens, row: int, rest: list[int], count: int, iterations: int) -> dict[int, torch.Tensor]:
    """Eq. 7 to 11, the last four of them repeated."""
    hidden, text = tokens.hidden[row], words(tokens, row)
    asked = dict(zip(rest, asked_for(text, [hidden[slot] for slot in rest]), strict=True)) if rest else {}
    centres = sorted(rest, key=lambda slot: -asked[slot])[:count]
    values = {centre: hidden[centre] for centre in centres}
    for _ in range(iterations if centres else 0):
        clusters = {centre: [] for centre in centres}
        for slot in rest:
            if slot in centres:
                continue
            over = softmax([product(hidden[slot], word) for word in text])
            a = {
                centre: sum(x * y for x, y in zip(over, softmax([product(word, value) for word in text]), strict=True))
                for centre, value in values.items()
            }
            best = max(centres, key=lambda centre: a[centre])
            clusters[best].append((a[best], hidden[slot]))
        for centre, members in clusters.items():
            total = sum(a for a, _ in members)
            values[centre] = values[centre] + sum(a / total * value for a, value in members)
    return values


def words(tokens: Tokens, row: int) -> list[torch.Tensor]:
    """The text behind the last image."""
    end = max(slots_of(LAYOUT[row], "01"))
    return list(tokens.hidden[row, end + 1 :])


def expected(tokens: Tokens, row: int, slots: list[int], kinds: tuple[int, int], place: Place, rule: Rule) -> dict:
    best = dominant(tokens, row, slots, kinds[0], place, rule)
    rest = [slot for slot in slots if slot not in best]
    return {slot: tokens.hidden[row, slot] for slot in best} | complement(
        tokens, row, rest, kinds[1], rule.whole("iterations")
    )


@pytest.mark.parametrize(
    ("name", "place"), [("visiontrim", "entry"), ("visiontrim", "decoder"), ("visiontrim-decoder", "decoder")]
)
@pytest.mark.parametrize(
    ("share", "kinds"), [(0.0, ((4, 0), (5, 0))), (0.25, ((3, 1), (4, 1))), (0.5, ((2, 2), (2, 3)))]
)
@pytest.mark.parametrize("iterations", [1, 3])
def test_as_written_out(name, place, share, kinds, iterations):
    parameters = {"complement": share, "iterations": iterations, "feature_scale": 3.0}
    rule = make_rule(name, parameters)
    tokens = tokens_like(LAYOUT, (4, 5), grids=GRIDS)
    found = reduced(name, tokens, place, **parameters)
    for row in range(2):
        slots = slots_of(LAYOUT[row], "01")
        assert_same(found[row], expected(tokens, row, slots, kinds[row], place, rule))


def test_under_a_quota_each_image_has_both_kinds():
    parameters = {"complement": 0.5, "quota": "per-image"}
    tokens = tokens_like(LAYOUT, (5, 9), grids=GRIDS)
    rule = make_rule("visiontrim", parameters)
    whole = {}
    for image, kinds in (("0", (1, 2)), ("1", (1, 1))):  # 3 and 2 tokens, halves rounded up to complement
        whole |= expected(tokens, 0, slots_of(LAYOUT[0], image), kinds, "entry", rule)
    assert_same(reduced("visiontrim", tokens, **parameters)[0], whole)


def test_clusters_by_hand():
    """Eq. 8 to 11 for one centre: it gets the mean of the others, weighted with a, once in each iteration."""
    tokens = tokens_like(("000tt",), (1,), width=2, grids=((Grid(1, 3),),))
    tokens.hidden[0] = torch.tensor([[2.0, 2.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # Both words want the first token most, and it answers both equally: so a = (p + q) / 2 = 1 / 2 for all others.
    added = torch.tensor([0.5, 0.0], dtype=torch.float64)
    for iterations in (0, 1):
        found = reduced("visiontrim", tokens, complement=1.0, iterations=iterations)[0]
        assert_same(found, {0: tokens.hidden[0, 0] + iterations * added})
    # With (0.5, 0) more, it answers the first word more, and the token that does so too gets the larger weight.
    answers = softmax([2.5 / math.sqrt(2), 2 / math.sqrt(2)])
    first = softmax([1 / math.sqrt(2), 0])
    a, b = first[0] * answers[0] + first[1] * answers[1], 0.5
    again = torch.tensor([a / (a + b), 0.0], dtype=torch.float64)
    assert_same(
        reduced("visiontrim", tokens, complement=1.0, iterations=2)[0], {0: tokens.hidden[0, 0] + added + again}
    )


def test_weights_by_variance_by_hand():
    """Variances 1 and 9: the first score counts nine times as much; a local score that does not vary says nothing."""
    member = torch.tensor([[True, True, False]])
    first, second = torch.tensor([[0.0, 2.0, 50.0]]), torch.tensor([[8.0, 2.0, 70.0]])
    assert weigh_by_variance(first, second, member)[0, :2].tolist() == pytest.approx([0.8, 2.0])
    still = torch.tensor([[3.0, 3.0, 9.0]])
    assert weigh_by_variance(first, still, member)[0, :2].tolist() == pytest.approx([0.0, 2.0])
    assert weigh_by_variance(still, first, member)[0, :2].tolist() == pytest.approx([3.0, 3.0])


def test_without_text_nothing_is_merged():
    tokens = tokens_like(("000000",), (4,), grids=((Grid(2, 3),),))
    found = reduced("visiontrim", tokens)[0]
    assert_same(found, {slot: tokens.hidden[0, slot] for slot in found})
    assert len(found) == 4


def test_features_of_the_text_that_are_given_are_used():
    tokens = tokens_like(LAYOUT, (4, 5), grids=GRIDS)
    draw = torch.Generator().manual_seed(3)
    features = torch.randn(*tokens.vision.shape, 4, generator=draw, dtype=torch.float64)
    wanted = torch.stack([features[0, 5], features[1, 7]])[:, None] * 9
    text = Text(wanted, torch.ones(2, 1, dtype=torch.bool))
    given = replace(tokens, text=text, features=features)
    kept = chosen("visiontrim", given, complement=1.0)
    assert 5 in kept[0]
    assert 7 in kept[1]
