"""A schedule on a model whose decoder layers are on several devices does what it does on one, bit for bit.

No machine with two GPUs was available: devices are labels on tensors of the CPU (``tests/runtime/labels.py``), with
accelerate's own hooks moving from one to the next. A missing move raises; what a real copy or another GPU does is not
shown by this. ``test_offloading`` has accelerate's hooks on weights that are really elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from scheduler_search.rule import make_rule
from scheduler_search.runtime import Prefix, PrefixRun, apply_prefix, apply_reduction, can_resume, prefix
from scheduler_search.runtime.families import family_of
from scheduler_search.runtime.placement import execution_device
from scheduler_search.schedule.values import Reduction, VisionReduction
from tests.runtime import tiny, towers
from tests.runtime.families import BUILDERS
from tests.runtime.flash import emulated_kernels, use_flash
from tests.runtime.labels import FIRST, HOST, SECOND, THIRD, MixedDevicesError, label_of, labelled_devices, put, spread
from tests.runtime.test_handle import state_of
from tests.runtime.tiny import LAYERS, quick_first, reduction

RULES: list[tuple[str, dict[str, Any]]] = [
    ("attention-rank", {}),
    ("random", {"seed": 3}),
    ("fastv", {"quota": "per-image"}),
    ("attention-rank", {"query_rows": "all"}),
    ("pyramid-drop", {}),
]
# Where the decoder layers are, in turn, and where all else is. Masks and rotary embeddings are made with the latter.
PLACES = {"two": ([FIRST, SECOND], FIRST), "three": ([FIRST, SECOND, THIRD], SECOND), "elsewhere": ([SECOND], FIRST)}


def spread_out(model: Any, places: str = "two") -> Any:
    devices, rest = PLACES[places]
    apart = copy.deepcopy(model)
    return spread(apart, family_of(apart).decoder(apart).layers, devices, rest)


@pytest.fixture(scope="module")
def spread_of() -> Callable[..., Any]:
    return cache(lambda decoder, attention, places="two": spread_out(tiny.build(decoder, attention), places))


@pytest.fixture(scope="module")
def family_models() -> Callable[[str, str], tuple[Any, Any]]:
    def both(name: str, attention: str) -> tuple[Any, Any]:
        model = BUILDERS[name].build(attention)
        return model, spread_out(model)

    return cache(both)


def answer(model: Any, inputs: dict[str, Any], steps: int = 3, **settings: Any) -> list[torch.Tensor]:
    """Generated tokens, their logits, and what the layers hold: keys, values, and which prompt tokens."""
    tokens, logits, held = tiny.generate(model, inputs, steps, **settings)
    kept = [layer.kept.position for layer in held.layers if getattr(layer, "kept", None) is not None]
    return [tokens, logits, *(states for layer in held.layers for states in (layer.keys, layer.values)), *kept]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def check(model: Any, apart: Any, inputs: dict[str, Any], applied: Reduction, **settings: Any) -> list[torch.Tensor]:
    """The answer, once it is that of the spread model too."""
    with apply_reduction(model, applied):
        whole = answer(model, inputs, **settings)
    with labelled_devices():  # inputs are on the host: accelerate's hook on the whole model takes them to its device
        unreduced = apart(**inputs).logits  # transformers installs hooks of its own at a tower's first pass
        before = state_of(apart)
        with apply_reduction(apart, applied):
            found = answer(apart, inputs, **settings)
        assert state_of(apart) == before
        assert torch.equal(apart(**inputs).logits, unreduced)
        assert len({label_of(keys) for keys in found[2 : 2 + 2 * LAYERS]}) == len({*_layer_devices(apart)})
    assert same(found, whole)
    return whole


def _layer_devices(model: Any) -> Iterator[torch.device]:
    return (execution_device(layer, HOST) for layer in family_of(model).decoder(model).layers)


@pytest.mark.parametrize("rule", quick_first(RULES))
@pytest.mark.parametrize("form", quick_first([("sdpa", "varying"), ("eager", "mixed")]))
@pytest.mark.parametrize("places", list(PLACES))
def test_layers_on_several_devices(model_of, spread_of, places, form, rule):
    (attention, batch), (name, parameters) = form, rule
    apart = spread_of("llama", attention, places)
    check(model_of("llama", attention), apart, tiny.batch(batch), reduction(rule=name, **parameters))


@pytest.mark.parametrize("decoder", quick_first(["mistral", "llama", "qwen2"]))
def test_decoders_and_an_entry_rule(model_of, spread_of, decoder):
    applied = reduction((0.8, 0.8, 0.5), entry="pooling")
    check(model_of(decoder), spread_of(decoder, "sdpa"), tiny.batch("varying"), applied)


@pytest.mark.parametrize("tower", quick_first(["tome", "evit", None]))
def test_a_tower_on_several_devices(tower):
    """Its layers take turns too; what is read of it, and what is left by it, meets the decoder on another device."""
    model = towers.build()
    apart = copy.deepcopy(model)
    layers = [*apart.base_model.vision_tower.encoder.layers, *apart.get_decoder().layers]
    spread(apart, layers, [FIRST, SECOND], THIRD)
    vision = None if tower is None else VisionReduction((1.0, 0.75, 0.5, 0.5), make_rule(tower))
    rates = (0.25, *[0.1] * (LAYERS - 1))
    check(model, apart, tiny.batch("varying"), Reduction(rates, make_rule("fastv"), make_rule("visionzip"), vision))


def test_beams(model_of, spread_of):
    check(model_of("llama"), spread_of("llama", "sdpa"), tiny.batch(), reduction(), num_beams=3)


def test_flash_attention():
    model = tiny.build()
    apart = spread_out(model)
    with emulated_kernels():
        check(use_flash(model), use_flash(apart), tiny.batch("single"), reduction())


def test_later_turns(model_of, spread_of):
    """A second turn on a cache whose layers are on several devices."""

    def turns(model: Any) -> torch.Tensor:
        held = DynamicCache(config=model.config)
        inputs = tiny.batch()
        later = torch.full((len(inputs["input_ids"]), 3), 7)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(later)], dim=1)
        with apply_reduction(model, reduction()):
            model(**inputs, past_key_values=held)
            logits: torch.Tensor = model(input_ids=later, attention_mask=mask, past_key_values=held).logits
        return logits

    with labelled_devices():
        found = turns(spread_of("llama", "eager"))
    assert torch.equal(found, turns(model_of("llama", "eager")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attention"), [(name, builder.attention[0]) for name, builder in BUILDERS.items()], ids=list(BUILDERS)
)
def test_families(family_models, name, attention):
    model, apart = family_models(name, attention)
    builder, rates = BUILDERS[name], reduction()
    inputs = builder.batch(builder.samples("varying"))
    unreduced = family_of(model).whole_layers
    applied = reduction((*(1.0,) * unreduced, *rates.keep_rates[unreduced:]))
    whole = check(model, apart, inputs, applied, steps=2)
    if can_resume(model):  # in front of a layer that chooses, behind one that did
        capture = PrefixRun(applied, capture=3)
        assert same(prefixed(apart, inputs, capture, steps=2), whole)
        with labelled_devices():
            start = capture.captured.to(SECOND)
        assert same(prefixed(apart, inputs, PrefixRun(applied, start), steps=2), whole)


# -- prefixes


def prefixed(apart: Any, inputs: dict[str, Any], run: PrefixRun, **settings: Any) -> list[torch.Tensor]:
    before = state_of(apart)
    with labelled_devices(), apply_prefix(apart, run):
        found = answer(apart, inputs, **settings)
    assert state_of(apart) == before
    return found


def check_prefixes(model: Any, apart: Any, inputs: dict[str, Any], kept_on: torch.device | None) -> None:
    """Two stages of a search: each first gives a prefix, then a candidate starts from it, wherever it was kept."""
    start: Prefix | None = None
    for layer, rates in ((3, (1.0, 1.0, 0.7)), (5, (1.0, 1.0, 0.7, 0.4, 0.4))):
        for tail, capture in ((0.4, layer), (0.2, None)):
            applied = reduction((*rates, tail))
            with apply_reduction(model, applied):
                whole = answer(model, inputs)
            run = PrefixRun(applied, start, capture)
            assert same(prefixed(apart, inputs, run), whole), (layer, tail)
            if run.captured is not None:
                with labelled_devices():
                    start = run.captured if kept_on is None else run.captured.to(kept_on)


@pytest.mark.slow
@pytest.mark.parametrize("kept_on", [None, FIRST, SECOND, HOST], ids=["as-they-are", "first", "second", "host"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prefixes(model_of, spread_of, attention, kept_on):
    apart = spread_of("llama", attention, "three")
    check_prefixes(model_of("llama", attention), apart, tiny.batch("varying"), kept_on)


def test_prefixes_on_the_host_for_a_model_on_one_device(model_of):
    """Without hooks of accelerate, what was kept on the host must be brought to the device by the runtime alone."""
    model = copy.deepcopy(model_of("llama"))
    for tensor in (*model.parameters(), *model.buffers()):
        put(tensor, FIRST)
    inputs = {name: put(tensor, FIRST) for name, tensor in tiny.batch("varying").items()}
    with labelled_devices():
        model(**inputs)  # transformers installs hooks of its own at a tower's first pass
    check_prefixes(model_of("llama"), model, inputs, kept_on=HOST)


# -- what the labels are worth


def test_a_missing_move_is_seen(model_of, spread_of, monkeypatch):
    """Held keys and values that stay where the embeddings are do not meet those of their layer."""
    monkeypatch.setattr(prefix, "execution_device", lambda _module, default: default)
    with pytest.raises(MixedDevicesError, match=r"cat of .* on cpu:0, .* on cpu:1"):
        check_prefixes(model_of("llama"), spread_of("llama", "sdpa"), tiny.batch(), kept_on=FIRST)


def test_tensors_of_two_devices_never_meet():
    with labelled_devices() as labels:
        first, second = torch.ones(2, device=FIRST), put(torch.ones(2), SECOND)
        assert (first.device, second.device, torch.ones(2).device) == (FIRST, SECOND, HOST)
        for mix in (lambda: first + second, lambda: torch.cat([first, second]), lambda: first[second.long()]):
            with pytest.raises(MixedDevicesError):
                mix()
        with pytest.raises(MixedDevicesError):
            first.numpy()
        assert (first + torch.tensor(1.0)).device == FIRST
        assert (first + second.to(FIRST)).device == FIRST
        assert (first.to(FIRST) is first, labels.moves) == (True, 1)


def test_a_model_on_one_device_moves_nothing_but_what_comes_from_the_host(model_of):
    """``.to`` of a tensor's own device gives that tensor: all that the runtime adds are the plan's few tensors."""
    model = copy.deepcopy(model_of("llama"))
    for tensor in (*model.parameters(), *model.buffers()):
        put(tensor, FIRST)
    with labelled_devices() as labels:
        inputs = {name: tensor.to(FIRST) for name, tensor in tiny.batch().items()}
        before = labels.moves
        with apply_reduction(model, reduction()):
            answer(model, inputs)
        assert labels.between == 0
        assert labels.moves - before <= 12
