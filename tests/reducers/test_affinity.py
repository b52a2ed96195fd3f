import math
from statistics import mean, pstdev

import pytest
import torch

from scheduler_search.reducers import Grid, Tokens
from scheduler_search.reducers.affinity import local_affinity
from scheduler_search.rule import make_rule
from tests.reducers.layouts import tokens_like

RULE = make_rule("visiontrim")


def handed_out(features: list[torch.Tensor], places: list[tuple[int, int]], token: int, rule=RULE) -> dict[int, float]:
    """Eq. 4 and 5: the affinity of one token to each of its neighbours."""
    reach = rule.whole("window") // 2
    near = [
        other
        for other in range(len(places))
        if other != token and all(abs(a - b) <= reach for a, b in zip(places[token], places[other], strict=True))
    ]

    def kernel(distances: list[float], scale: float) -> list[float]:
        sigma = pstdev(distances) or 1.0
        values = [math.exp(-((distance / (scale * sigma)) ** 2)) for distance in distances]
        return [value / sum(values) for value in values] if pstdev(distances) else [1 / len(values)] * len(values)

    if not near:
        return {}
    apart = kernel([float((features[token] - features[other]).norm()) for other in near], rule.number("feature_scale"))
    away = kernel([math.dist(places[token], places[other]) for other in near], rule.number("position_scale"))
    weight = rule.number("position_weight")
    return {other: apart[at] + weight * away[at] for at, other in enumerate(near)}


def slow(features: list[torch.Tensor], places: list[tuple[int, int]], rule=RULE) -> list[float]:
    """What a token is handed by its neighbours, on average."""
    given = [handed_out(features, places, token, rule) for token in range(len(places))]
    return [mean([one[token] for one in given if token in one] or [0.0]) for token in range(len(places))]


def places_of(grid: Grid) -> list[tuple[int, int]]:
    return [divmod(token, grid.width) for token in range(grid.tokens)]


@pytest.mark.parametrize("window", [3, 5])
def test_as_written_out_in_each_image(window):
    rule = make_rule("visiontrim", {"window": window, "feature_scale": 3.0, "position_scale": 2.0})
    grids = ((Grid(3, 4), Grid(2, 3)), (Grid(4, 4),))
    tokens = tokens_like(("t" + "0" * 12 + "t" + "1" * 6 + "t", "...t" + "0" * 16 + "t"), (3, 3), grids=grids)
    found = local_affinity(tokens, rule)
    expected = torch.zeros_like(found)
    for row, start, grid in ((0, 1, grids[0][0]), (0, 14, grids[0][1]), (1, 4, grids[1][0])):
        slots = slice(start, start + grid.tokens)
        local = slow(list(tokens.hidden[row, slots]), places_of(grid), rule)
        expected[row, slots] = torch.tensor(local, dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_neighbours_are_those_that_are_left():
    rule = make_rule("visiontrim", {"feature_scale": 3.0})
    whole = tokens_like(("t" + "0" * 16 + "t",), (3,), grids=((Grid(4, 4),),))
    left = [0, 1, 2, 3, 5, 9, 12, 16, 17]  # of 16 patches 0, 1, 2, 4, 8, 11 and 15
    tokens = Tokens(
        whole.hidden[:, left],
        whole.vision[:, left],
        whole.position[:, left],
        None,
        whole.keep,
        whole.counts,
        whole.prompt,
    )
    places = [divmod(slot - 1, 4) for slot in left[1:-1]]
    expected = slow(list(tokens.hidden[0, 1:-1]), places, rule)
    assert local_affinity(tokens, rule)[0].tolist() == pytest.approx([0.0, *expected, 0.0])


def test_by_hand():
    """Three patches in a row, the middle one with two neighbours, of which the right one is as it is."""
    tokens = tokens_like(("t000t",), (1,), width=1, grids=((Grid(1, 3),),))
    tokens.hidden[0, 1:4, 0] = torch.tensor([2.0, 0.0, 0.0])
    # The middle one's distances are 2 and 0: sigma is 1, and the shares are those of exp(-4 / 0.09) and 1. The other
    # two have one neighbour each, to which they hand all. Positions are equally far everywhere.
    share = math.exp(-4 / 0.09) / (1 + math.exp(-4 / 0.09))
    expected = [share + 0.005, (1.01 + 1.01) / 2, 1 - share + 0.005]
    assert local_affinity(tokens, RULE)[0, 1:4].tolist() == pytest.approx(expected)


def test_what_a_token_hands_out_says_nothing():
    """Why the mean is over what it is handed: the other one is (1 + w3) / neighbours for every image."""
    features = list(torch.randn(16, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    rule = make_rule("visiontrim", {"feature_scale": 3.0})
    for token in range(16):
        given = handed_out(features, places_of(Grid(4, 4)), token, rule)
        assert mean(given.values()) == pytest.approx(1.01 / len(given))
