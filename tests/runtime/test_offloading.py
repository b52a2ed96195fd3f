"""A schedule on a model whose weights are partly on disk: accelerate's hooks for real, on a machine without a GPU.

accelerate replaces the ``forward`` of the layers by one that loads their weights; ours is put around it and taken off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_module

from scheduler_search.runtime import PrefixRun, apply_prefix, apply_reduction, apply_schedule, identify
from scheduler_search.runtime.families import family_of
from scheduler_search.runtime.placement import execution_device
from scheduler_search.schedule.values import Schedule
from tests.runtime import tiny
from tests.runtime.test_handle import state_of
from tests.runtime.test_placement import answer, same
from tests.runtime.tiny import quick_first, reduction

CPU = torch.device("cpu")
ON_DISK = (1, 3, 4)


def placed() -> dict[str, str]:
    """Three decoder layers, the embeddings among all else that stays in memory, and the head on disk too."""
    layers = {f"model.language_model.layers.{layer}": "cpu" for layer in range(tiny.LAYERS)}
    layers |= {f"model.language_model.layers.{layer}": "disk" for layer in ON_DISK}
    rest = ("vision_tower", "multi_modal_projector", "language_model.embed_tokens", "language_model.norm")
    kept = dict.fromkeys([f"model.{name}" for name in (*rest, "language_model.rotary_emb")], "cpu")
    return {**kept, **layers, "lm_head": "disk"}


@pytest.fixture
def offloaded(tmp_path: Path) -> Callable[[str], Any]:
    def offload(attention: str) -> Any:
        model = copy.deepcopy(tiny.build("llama", attention))
        skipped = model._skip_keys_device_placement
        return dispatch_model(model, placed(), offload_dir=tmp_path / "weights", skip_keys=skipped)

    return offload


def layer_of(model: Any, index: int) -> Any:
    return family_of(model).decoder(model).layers[index]


def test_weights_are_on_disk_between_passes(offloaded):
    model = offloaded("sdpa")
    for index in range(tiny.LAYERS):
        kinds = {weight.device.type for weight in layer_of(model, index).parameters()}
        assert kinds == ({"meta"} if index in ON_DISK else {"cpu"})
        assert execution_device(layer_of(model, index), torch.device("meta")) == CPU


@pytest.mark.parametrize("batch", ["varying", "single"])
@pytest.mark.parametrize("rule", quick_first([("attention-rank", {}), ("random", {"seed": 3}), ("pyramid-drop", {})]))
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_a_schedule_does_what_it_does_to_the_whole_model(offloaded, model_of, attention, rule, batch):
    whole, model, inputs = model_of("llama", attention), offloaded(attention), tiny.batch(batch)
    unreduced = answer(model, inputs)
    assert same(unreduced, answer(whole, inputs))
    name, parameters = rule
    schedule = Schedule(identify(whole), reduction(rule=name, **parameters))
    before, forwards = state_of(model), forwards_of(model)
    with apply_schedule(whole, schedule):
        expected = answer(whole, inputs)
    with apply_schedule(model, schedule):
        assert same(answer(model, inputs), expected)
    assert (state_of(model), forwards_of(model)) == (before, forwards)
    assert same(answer(model, inputs), unreduced)


def forwards_of(model: Any) -> dict[str, Any]:
    return {name: vars(module).get("forward") for name, module in model.named_modules()}


@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_prefixes_pass_over_layers_whose_weights_are_on_disk(offloaded, model_of, attention):
    whole, model, inputs = model_of("llama", attention), offloaded(attention), tiny.batch("varying")
    answer(model, inputs)
    first, second = reduction((1.0, 1.0, 0.7, 0.7, 0.4)), reduction((1.0, 1.0, 0.7, 0.7, 0.2))
    before, forwards = state_of(model), forwards_of(model)
    run = PrefixRun(first, capture=4)
    for applied, one in ((first, run), (second, None)):
        with apply_reduction(whole, applied):
            expected = answer(whole, inputs)
        with apply_prefix(model, one or PrefixRun(applied, run.captured)):
            found = answer(model, inputs)
        assert same(found, expected)
        assert (state_of(model), forwards_of(model)) == (before, forwards)


def test_from_pretrained_with_a_map(tmp_path, model_of):
    saved, folder = model_of("llama"), tmp_path / "model"
    saved.save_pretrained(folder)
    whole = type(saved).from_pretrained(folder)
    model = type(saved).from_pretrained(folder, device_map=placed(), offload_folder=tmp_path / "weights")
    whole.generation_config = model.generation_config = saved.generation_config
    assert model.hf_device_map["model.language_model.layers.1"] == "disk"
    inputs, applied = tiny.batch(), reduction(rule="random", seed=3)
    with apply_reduction(whole, applied), apply_reduction(model, applied):
        assert same(answer(model, inputs), answer(whole, inputs))


def test_a_schedule_outlives_no_hook_of_accelerate(offloaded, model_of):
    """Hooks that accelerate takes off under a schedule take nothing of ours along, nor we of theirs."""
    whole, model, inputs = model_of("llama"), offloaded("sdpa"), tiny.batch()
    applied = reduction()
    with apply_reduction(whole, applied):
        expected = answer(whole, inputs)
    with apply_reduction(model, applied):
        remove_hook_from_module(model, recurse=True)
        model.load_state_dict(whole.state_dict(), assign=True)
        assert same(answer(model, inputs), expected)
    assert same(answer(model, inputs), answer(whole, inputs))
