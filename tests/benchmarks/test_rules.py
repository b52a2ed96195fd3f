"""The benchmark of rules: the schedules that it gives them, and one small run. No test looks at a time."""

import pytest

from benchmarks import rules
from scheduler_search.rule import make_rule
from scheduler_search.schedule.cost import DecoderShape, ModelShape, SplitCost, VisionShape

TOWER = VisionShape(
    layers=6, hidden=8, heads=2, intermediate=16, patches=64, patch_values=12, tokens_per_image=64, used_layers=5
)
SHAPE = ModelShape(DecoderShape(5, 8, 2, 2, 4, 16), TOWER, (8, 8), 32)


@pytest.mark.parametrize(
    ("name", "places", "tower", "decoder"),
    [
        ("fastv", ("decoder",), (), (1.0, 1.0, 0.5, 0.5, 0.5)),
        ("pooling", ("entry",), (), (0.5,) * 5),
        ("tome", ("vision",), (1.0, 1.0, 0.5, 0.5, 0.5, 0.5), (0.5,) * 5),
        ("mustdrop", ("vision", "entry", "decoder"), (1.0, 1.0, 0.5, 0.5, 0.5, 0.5), (0.25, 0.25, *(0.125,) * 3)),
    ],
)
def test_each_place_keeps_a_share_of_what_reaches_it(name, places, tower, decoder):
    reduction = rules.shaped(SHAPE, make_rule(name), places, 0.5)
    assert reduction.tower_rates == tower
    assert reduction.keep_rates == decoder
    random = rules.of_random(reduction, make_rule("random"))
    assert random.keep_rates == decoder
    assert random.vision is None


@pytest.mark.parametrize(("name", "places"), [("tome", ("vision",)), ("visiontrim", ("entry", "decoder"))])
def test_flops_are_those_of_the_budget(name, places):
    bed = rules.Bed(SHAPE, None, SplitCost(SHAPE, [64], [4]))
    target = 0.6 * bed.cost((1.0,) * 5)
    assert bed.flops(rules.at_flops(bed, make_rule(name), places, target)) / target == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_a_small_table(capsys):
    small = ["--samples", "8", "--rounds", "1", "--budgets", "0.25"]
    assert rules.main(["--rules", "random", "pooling", "ficoco-vl", *small]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    random, pooling, both = (dict(zip(rows[0], row, strict=True)) for row in rows[2:])
    assert random["minus random [95 %]"].startswith("+0.000")
    assert pooling["acts at"] == "entry"
    assert both["keeps"].count(">") == 1
    assert all(abs(float(row["FLOPs"]) - 1) < 0.05 for row in (random, pooling, both))
