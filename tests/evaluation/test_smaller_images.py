"""Stored features of images that were made smaller: the same bits, those of the last rate beside the whole ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scheduler_search.evaluation import scoring
from scheduler_search.evaluation.batches import Batch, Part, direct_arguments, split_arguments
from scheduler_search.evaluation.features import FeatureStore
from scheduler_search.evaluation.memory import Memory
from scheduler_search.rule import make_rule
from scheduler_search.runtime import PrefixRun, apply_prefix, apply_reduction, plan_of, vision_tokens
from scheduler_search.schedule.values import Reduction
from tests.runtime.families import BUILDERS
from tests.runtime.tiny import LAYERS, quick_first

CPU = torch.device("cpu")


def reducing(*rates: float) -> Reduction:
    entry = make_rule("downsample", {"level": "image"})
    return Reduction((*rates, *[rates[-1]] * (LAYERS - len(rates))), make_rule("attention-rank"), entry)


def model_and_batch(name: str) -> tuple[Any, Batch]:
    builder = BUILDERS[name]
    model: Any = builder.build()
    return model, split_arguments(builder.batch(builder.samples("varying")), model)


def runs_of(model: Any) -> list[int]:
    """Patches of every run of the tower from now on."""
    found: list[int] = []
    model.base_model.visual.blocks[0].register_forward_pre_hook(lambda _module, args: found.append(len(args[0])))
    return found


@pytest.mark.parametrize("name", quick_first(["qwen2-vl", "qwen2.5-vl", "qwen3-vl"]))
@torch.inference_mode()
def test_stored_features_give_the_same_bits(name: str) -> None:
    model, batch = model_and_batch(name)
    part, runs = Part(batch), runs_of(model)
    applied = reducing(0.25, 0.1)
    for _ in range(2):
        arguments, views = part.inputs(model, CPU, applied)
    assert runs == [4 * 23]  # of 9, 6 and 4, and 4 vision tokens, once
    with apply_reduction(model, applied) as handle:
        direct = scoring.first_logits(model, direct_arguments(batch, CPU))
        text = model.generate(**direct_arguments(batch, CPU), max_new_tokens=3, do_sample=False)
        for _ in range(2):
            with handle.tower_views(views):
                assert torch.equal(scoring.first_logits(model, arguments), direct)
                assert torch.equal(model.generate(**arguments, max_new_tokens=3, do_sample=False), text)
    assert runs == [4 * 23] * 3


@torch.inference_mode()
def test_the_last_rate_stays_beside_the_whole_images() -> None:
    model, batch = model_and_batch("qwen2-vl")
    store = FeatureStore(Memory(1 << 30))
    part, runs = Part(batch, shelf=store.shelf(("search", 0, 0)), again=lambda: batch), runs_of(model)
    kept = []
    for applied in (None, reducing(0.25), reducing(0.25, 0.1), None, reducing(0.5), reducing(0.25)):
        features = part.inputs(model, CPU, applied)[0]["mm_encoder_outputs"]["image"].pooler_output
        kept.append(int(torch.cat(features).isfinite().all(1).sum()))
    assert kept == [92, 23, 23, 92, 46, 23]
    assert len(runs) == 4
    assert runs[0] == 4 * 92
    assert runs[1] == runs[3] == 4 * 23


@torch.inference_mode()
def test_a_prefix_has_what_is_left_in_it() -> None:
    model, batch = model_and_batch("qwen2-vl")
    part, applied = Part(batch), reducing(0.5, 0.5, 0.25)
    plan = plan_of(model, applied, tuple(vision_tokens(model, batch.input_ids).sum(1).tolist()))
    assert plan.counts[0] == plan.survivors == (18, 20, 8)
    arguments, views = part.inputs(model, CPU, applied)
    first = PrefixRun(applied, None, 2)
    with apply_prefix(model, first) as handle, handle.tower_views(views):
        expected = scoring.first_logits(model, arguments)
    assert first.captured is not None
    assert first.captured.fits(applied, plan)
    with apply_prefix(model, PrefixRun(applied, first.captured, None)):
        found = scoring.first_logits(model, part.arguments(model, CPU))
    assert torch.equal(found, expected)


@torch.inference_mode()
def test_wall_times_are_of_the_tower_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "REPEATS", 1)
    model, batch = model_and_batch("qwen2-vl")
    runs, loaded = runs_of(model), SimpleNamespace(model=model, device=CPU, devices=(), question_encoder=None)
    applied = reducing(0.25)
    times = scoring.prefill_milliseconds(loaded, [Part(batch)], [applied, applied.unreduced])  # type: ignore[arg-type]
    assert len(times) == 2
    assert runs == [4 * 23, 4 * 92] * 2  # one round that is not timed, and one that is
