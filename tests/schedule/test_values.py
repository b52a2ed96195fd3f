from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.errors import RuleError, ScheduleError
from scheduler_search.rule import Rule, make_rule
from scheduler_search.schedule.values import ModelIdentity, Reduction, Schedule, VisionReduction
from tests.schedule.strategies import schedules

RANK = make_rule("attention-rank")
POOLING = make_rule("pooling")
DIVPRUNE = make_rule("divprune")
IDENTITY = ModelIdentity("tiny-llava", "main", "LlavaForConditionalGeneration", 4, 2, "sha256:" + "0" * 64)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((1.0, 1.5), "keep rates of layer 2 must be between 0.0 and 1.0, but got 1.5"),
        ((1.0, -0.1), "must be between 0.0 and 1.0, but got -0.1"),
        ((1.0, math.nan), "keep rates of layer 2 must be finite, but got nan"),
        ((1.0, 1), "keep rates must be floats, but got 1 at layer 2"),
        ((True, 1.0), "keep rates must be floats, but got True at layer 1"),
        ((1.0, "0.5"), "keep rates must be floats, but got '0.5' at layer 2"),
        ((1.0, 0.4, 0.5), "keep rates must not increase from layer to layer, but got 0.5 after 0.4 at layer 3"),
        ((), "keep rates must be a non-empty tuple of floats"),
        ([1.0, 0.5], "keep rates must be a non-empty tuple of floats, but got [1.0, 0.5]"),
        ((0.5, 0.5), "needs an entry rule, but got 0.5 after 1.0 and no entry rule"),
    ],
)
def test_rates_that_cannot_be_a_reduction(rates: tuple[float, ...], message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Reduction(rates, RANK)
    assert message in str(caught.value)


def test_rules_act_only_at_their_places() -> None:
    with pytest.raises(ScheduleError, match=r"rule 'divprune' acts only at entry, but got it as the decoder rule"):
        Reduction((1.0,), DIVPRUNE)
    with pytest.raises(ScheduleError, match=r"'attention-rank' acts only at decoder, but got it as the entry rule"):
        Reduction((0.5,), RANK, entry_rule=RANK)
    with pytest.raises(ScheduleError, match=r"acts only at decoder, but got it as the vision rule"):
        VisionReduction((1.0,), RANK)
    with pytest.raises(ScheduleError, match="the decoder rule must be a Rule, but got 'attention-rank'"):
        Reduction((1.0,), "attention-rank")  # type: ignore[arg-type]


def test_rules_must_exist_and_be_complete() -> None:
    with pytest.raises(RuleError, match="did you mean 'fastv'"):
        Reduction((1.0,), Rule("fastw", 1, ()))
    with pytest.raises(RuleError, match="known in version 1, but got version 3"):
        Reduction((1.0,), replace(RANK, version=3))
    with pytest.raises(ScheduleError, match="needs all of its parameters in order"):
        Reduction((1.0,), replace(RANK, parameters=RANK.parameters[1:]))


def test_images_are_made_smaller_to_the_first_rate() -> None:
    for level, rate in (("image", 0.5), ("grid", 1.0)):
        entry = make_rule("downsample", {"level": level})
        assert Reduction((0.5, 0.25), RANK, entry_rule=entry).image_rate == rate
    assert Reduction((1.0, 0.25), RANK).image_rate == 1.0


def test_entry_rule_executes_the_first_rate() -> None:
    assert Reduction((0.5, 0.25), RANK, entry_rule=POOLING).counts(10) == (5, 3)
    assert Reduction((1.0, 0.25), RANK, entry_rule=POOLING).counts(10) == (10, 3)


def test_what_is_reduced() -> None:
    assert not Reduction((1.0, 1.0), RANK).reduces(100)
    assert Reduction((1.0, 0.99), RANK).reduces(100)
    assert not Reduction((1.0, 0.999), RANK).reduces(100)
    assert not Reduction((1.0, 0.0), RANK).reduces(0)


def test_one_rate_per_layer_of_the_model() -> None:
    with pytest.raises(ScheduleError, match="one keep rate for each of the 4 decoder layers, but got 3"):
        Schedule(IDENTITY, Reduction((1.0, 1.0, 0.5), RANK))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "/models/tiny"}, "not a path, but got '/models/tiny'"),
        ({"id": "./tiny"}, "not a path"),
        ({"id": "~/tiny"}, "not a path"),
        ({"id": "models/vlm/tiny"}, "not a path"),
        ({"id": "C:\\tiny"}, "not a path"),
        ({"id": ""}, "not a path"),
        ({"id": 3}, "model id must be a text, but got 3"),
        ({"revision": None}, "model revision must be a text, but got None"),
        ({"decoder_layers": 0}, "decoder_layers must be at least 1, but got 0"),
        ({"decoder_layers": 4.0}, "decoder_layers must be a whole number, but got 4.0"),
        ({"vision_layers": -1}, "vision_layers must be at least 0, but got -1"),
        ({"config_digest": "sha256:0"}, "config_digest must be 'sha256:' and 64 hexadecimal digits"),
    ],
)
def test_identities_that_identify_nothing(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        replace(IDENTITY, **fields)  # type: ignore[arg-type]
    assert message in str(caught.value)


@given(schedules())
def test_equal_schedules_have_equal_digests(schedule: Schedule) -> None:
    again = Schedule(replace(schedule.model), replace(schedule.reduction))
    assert again == schedule
    assert again.digest == schedule.digest
    assert schedule.digest.startswith("sha256:")


@given(schedules(), st.data())
def test_any_changed_field_changes_the_digest(schedule: Schedule, data: st.DataObject) -> None:
    model, reduction = schedule.model, schedule.reduction
    rates = reduction.keep_rates
    changed = [
        Schedule(replace(model, **{name: getattr(model, name) + "x"}), reduction)  # type: ignore[arg-type]
        for name in ("id", "revision", "architecture")
    ]
    if reduction.vision is None:
        changed.append(Schedule(replace(model, vision_layers=model.vision_layers + 1), reduction))
    changed.append(Schedule(replace(model, config_digest="sha256:" + "ab" * 32), reduction))
    changed.append(
        Schedule(replace(model, decoder_layers=len(rates) + 1), replace(reduction, keep_rates=(*rates, rates[-1])))
    )
    if rates[-1] > 0.0:
        lower = data.draw(st.floats(0.0, rates[-1], exclude_max=True))
        entry = reduction.entry_rule if len(rates) > 1 else POOLING
        changed.append(Schedule(model, replace(reduction, keep_rates=(*rates[:-1], lower), entry_rule=entry)))
    changed.append(Schedule(model, replace(reduction, rule=make_rule("fastv"))))
    changed.append(Schedule(model, replace(reduction, entry_rule=make_rule("random", {"seed": 5}))))
    digests = {schedule.digest} | {other.digest for other in changed}
    assert len(digests) == len(changed) + 1


def test_negative_zero_is_zero() -> None:
    plus, minus = (Schedule(IDENTITY, Reduction((1.0, 1.0, 0.5, zero), RANK)) for zero in (0.0, -0.0))
    assert plus == minus
    assert plus.digest == minus.digest


def test_digest_of_version_1_is_frozen() -> None:
    """Published files carry this digest: a change of it is a change of format."""
    schedule = Schedule(IDENTITY, Reduction((1.0, 1.0, 0.1, 1e-07), RANK))
    assert schedule.digest == "sha256:3bc2964c08ac72372502ae7e214435214c84167e65363fc327c1a1818d88b850"


@pytest.mark.slow
def test_package_imports_without_torch_scipy_numpy_or_pydantic() -> None:
    code = (
        "import sys, scheduler_search.schedule as s; s.sigmoid(12, 0.25, 1.0); "
        "print([m for m in ('torch', 'scipy', 'numpy', 'pydantic') if m in sys.modules], s.ScheduleDocument.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "ScheduleDocument"]
