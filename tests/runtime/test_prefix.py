"""A pass that starts from a prefix gives, bit for bit, the logits, scores and tokens of the whole pass."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime import Prefix, PrefixRun, apply_prefix, apply_reduction, can_resume
from scheduler_search.schedule.values import Reduction
from tests.runtime import tiny
from tests.runtime.families import BUILDERS
from tests.runtime.tiny import LAYERS, quick_first, reduction

# A prefix in front of one layer, the rates before it and those of the candidates behind it, as a search tries them: the
# first candidate starts from the last prefix and gives the next one, the others start from that. What it reads is
#
# * the ranking that was kept with it, for other counts than those of the candidate that gave it,
# * not that ranking, if a later layer drops first,
# * the ranking kept by a candidate that dropped nothing there, the tokens left before, and no image at all,
# * at the last prefix, what a pass gave that itself started from one.
Stages = list[tuple[int, tuple[float, ...], tuple[tuple[float, ...], ...]]]
STAGES: Stages = [
    (2, (1.0, 1.0), ((0.7, 0.7), (0.4, 0.2), (1.0, 0.5))),
    (4, (1.0, 1.0, 0.7, 0.7), ((0.7,), (0.4,), (0.0,))),
    (5, (1.0, 1.0, 0.7, 0.7, 0.4), ((0.4,), (0.1,))),
]
# For families, whose layers differ and not the prefixes.
FEWER: Stages = [
    (2, (1.0, 1.0), ((0.7, 0.7), (1.0, 0.5))),
    (4, (1.0, 1.0, 0.7, 0.7), ((0.7,), (0.4, 0.1))),
]
FORMS = [*itertools.product(["sdpa"], ["padded", "varying", "mixed", "single"]), ("eager", "varying")]
RULES = [("attention-rank", {}), ("random", {"seed": 3}), ("fastv", {}), ("attention-rank", {"query_rows": "last"})]


@pytest.fixture(scope="module")
def family_model() -> Callable[[str, str], Any]:
    return cache(lambda name, attention: BUILDERS[name].build(attention))


def prefill(model: Any, inputs: dict[str, torch.Tensor], use_cache: bool) -> list[torch.Tensor]:
    """Logits of all slots that are left; with a cache, of two tokens, and all that later tokens would read of it."""
    if not use_cache:
        return [model(**inputs, use_cache=False).logits]
    tokens, logits, filled = tiny.generate(model, inputs, 2)
    return [tokens, logits, *(part for layer in filled.layers for part in held(layer))]


def held(layer: Any) -> list[torch.Tensor]:
    """Keys, values, how many tokens were seen, and the prompt tokens that are left, with their fillers."""
    kept = None if layer.kept is None else (layer.kept.position, layer.kept.valid)
    parts = [layer.keys, layer.values, torch.tensor(layer.get_seq_length()), *(kept or ())]
    return [torch.empty(0) if part is None else part for part in parts]


def whole(model: Any, inputs: dict[str, torch.Tensor], applied: Reduction, use_cache: bool) -> list[torch.Tensor]:
    with apply_reduction(model, applied):
        return prefill(model, inputs, use_cache)


def resumed(model: Any, inputs: dict[str, torch.Tensor], run: PrefixRun, use_cache: bool) -> list[torch.Tensor]:
    with apply_prefix(model, run):
        return prefill(model, inputs, use_cache)


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def check_stages(
    model: Any, inputs: dict[str, torch.Tensor], rule: str, parameters: Any, use_cache: bool, stages: Stages = STAGES
) -> None:
    """As a search does it: every stage's first candidate starts from the last prefix and gives the next one."""
    expected = cache(lambda applied: whole(model, inputs, applied, use_cache))
    start: Prefix | None = None
    for layer, before, candidates in stages:
        older = start
        for rates in candidates:
            applied = reduction((*before, *rates), rule, **parameters)
            run = PrefixRun(applied, start, layer if start is older else None)
            assert same(resumed(model, inputs, run, use_cache), expected(applied)), (layer, rates)
            if start is older:
                assert run.captured is not None
                start, copy = run.captured, run.captured.hidden.clone()
        assert start is not None
        assert torch.equal(start.hidden, copy)


@pytest.mark.parametrize("use_cache", [False, True], ids=["prefill", "generate"])
@pytest.mark.parametrize("rule", quick_first(RULES))
@pytest.mark.parametrize("form", quick_first(FORMS))
def test_resuming_changes_no_bit(model_of, form, rule, use_cache):
    attention, batch = form
    check_stages(model_of("llama", attention), tiny.batch(batch), *rule, use_cache)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "use_cache"), [("varying", True), ("padded", False)], ids=["varying-generate", "padded-prefill"]
)
@pytest.mark.parametrize(
    ("name", "attention"), [(name, attention) for name, builder in BUILDERS.items() for attention in builder.attention]
)
def test_families(family_model, name, attention, shape, use_cache):
    model, builder = family_model(name, attention), BUILDERS[name]
    inputs = builder.batch(builder.samples(shape))
    if can_resume(model):
        check_stages(model, inputs, "attention-rank", {}, use_cache, FEWER)
    else:
        with pytest.raises(UnsupportedError, match="read nothing but what the layer before gave"):
            apply_prefix(model, PrefixRun(reduction(), capture=2))


def test_deepstack_does_not_resume(family_model):
    """Features are added behind the first layers: families that do so run whole."""
    assert [name for name in ("qwen2-vl", "qwen3-vl", "gemma3") if can_resume(family_model(name, "eager"))] == [
        "qwen2-vl",
        "gemma3",
    ]


def test_a_prompt_that_keeps_all_gives_and_uses_prefixes(model_of):
    """Of the unreduced model, as the first trial of a search is."""
    model, inputs = model_of("llama"), tiny.batch()
    full, applied = reduction((1.0,)), reduction((1.0, 1.0, 0.5))
    expected = whole(model, inputs, full, use_cache=False)
    run = PrefixRun(full, capture=2)
    assert same(resumed(model, inputs, run, use_cache=False), expected)
    assert same(resumed(model, inputs, PrefixRun(full, run.captured), use_cache=False), expected)
    again = resumed(model, inputs, PrefixRun(applied, run.captured), use_cache=False)
    assert same(again, whole(model, inputs, applied, use_cache=False))


def captured(model: Any, inputs: dict[str, torch.Tensor], layer: int = 3, use_cache: bool = False) -> Prefix:
    run = PrefixRun(reduction(), capture=layer)
    resumed(model, inputs, run, use_cache)
    assert run.captured is not None
    return run.captured


def test_layers_in_front_of_the_prefix_do_not_run(model_of):
    model, inputs = model_of("llama"), tiny.batch()
    start = captured(model, inputs)
    calls: list[int] = []
    layers = model.get_decoder().layers
    hooks = [
        layer.self_attn.register_forward_hook(lambda *_, at=at: calls.append(at)) for at, layer in enumerate(layers)
    ]
    resumed(model, inputs, PrefixRun(reduction(), start), use_cache=False)
    for hook in hooks:
        hook.remove()
    assert calls == list(range(3, LAYERS))


def test_the_report_is_that_of_the_whole_pass(model_of):
    model, inputs = model_of("llama"), tiny.batch()
    with apply_reduction(model, reduction()) as handle:
        model(**inputs)
        expected = handle.report()
    with apply_prefix(model, PrefixRun(reduction(), captured(model, inputs, use_cache=True))) as handle:
        model(**inputs)
        assert handle.report() == expected


def test_other_threads_run_whole(model_of):
    """While one thread is in a pass that starts from a prefix, the layers of another are all there."""
    model, inputs = model_of("llama"), tiny.batch("single")
    expected = model(**inputs, use_cache=False).logits
    start, found = captured(model, inputs), []
    layer = model.get_decoder().layers[0]

    def other() -> None:
        with torch.no_grad():
            hidden = model.get_input_embeddings()(inputs["input_ids"])
            found.append(layer(hidden, position_embeddings=model.get_decoder().rotary_emb(hidden, positions)))

    positions = torch.arange(inputs["input_ids"].shape[1])[None]
    other()

    def beside(*_: Any) -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    hook = model.get_decoder().layers[3].register_forward_pre_hook(beside)
    resumed(model, inputs, PrefixRun(reduction(), start), use_cache=False)
    hook.remove()
    assert torch.equal(found[0], found[1])
    assert torch.equal(model(**inputs, use_cache=False).logits, expected)


def state_of(model: Any) -> list[Any]:
    parts = [
        (sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()
    ]
    return [parts, [vars(module).get("forward") for module in model.modules()]]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(model_of, fails):
    model, inputs = model_of("llama"), tiny.batch()
    own = model.get_decoder().layers[0]
    before_own = own.forward
    own.forward = lambda *args, **kwargs: before_own(*args, **kwargs)  # as offloading libraries do
    try:
        start, state, logits = captured(model, inputs), state_of(model), model(**inputs).logits
        try:
            with apply_prefix(model, PrefixRun(reduction(), start, capture=4)):
                assert state_of(model) != state
                if fails:
                    raise KeyboardInterrupt
                prefill(model, inputs, use_cache=False)
        except KeyboardInterrupt:
            assert fails
        assert state_of(model) == state
        assert torch.equal(model(**inputs).logits, logits)
    finally:
        del own.forward


def test_a_pass_that_fails_gives_no_prefix_and_leaves_nothing(model_of):
    model, inputs = model_of("llama"), tiny.batch()
    start, state = captured(model, inputs), state_of(model)
    run = PrefixRun(reduction(), start, capture=4)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.get_decoder().layers[-1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt), apply_prefix(model, run):
        prefill(model, inputs, use_cache=False)
    hook.remove()
    assert run.captured is None
    assert state_of(model) == state
    assert same(resumed(model, inputs, run, use_cache=False), whole(model, inputs, reduction(), use_cache=False))


def test_two_at_once_are_refused(model_of):
    model = model_of("llama")
    run = PrefixRun(reduction(), capture=2)
    with apply_prefix(model, run), pytest.raises(UnsupportedError, match="one schedule at a time"):
        apply_prefix(model, run)


OTHERS = {
    "counts": (reduction((1.0, 1.0, 0.6)), tiny.batch(), False),
    "rule": (reduction(rule="random", seed=1), tiny.batch(), False),
    "prompt": (reduction(), tiny.batch(seed=1), False),
    "shape": (reduction(), tiny.batch("equal"), False),
    "cache": (reduction(), tiny.batch(), True),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_prefix_of_another_pass_is_refused(model_of, case):
    model = model_of("llama")
    applied, inputs, use_cache = OTHERS[case]
    start = captured(model, tiny.batch())
    with pytest.raises(UnsupportedError, match=r"a prefix must be of the same prompt|kept with one"):
        resumed(model, inputs, PrefixRun(applied, start), use_cache)


def test_with_a_cache_an_unreduced_prompt_is_refused(model_of):
    with pytest.raises(UnsupportedError, match="only a prompt that is reduced has prefixes"):
        resumed(model_of("llama"), tiny.batch(), PrefixRun(reduction((1.0,)), capture=2), use_cache=True)


@pytest.mark.parametrize("layer", [0, 3, LAYERS])
def test_a_layer_that_does_not_run_cannot_be_kept(model_of, layer):
    start = captured(model_of("llama"), tiny.batch())
    with pytest.raises(UnsupportedError, match="must lie behind the prefix and inside the decoder"):
        PrefixRun(reduction(), start, capture=layer)


def test_bytes_are_those_of_all_tensors(model_of):
    inputs = tiny.batch()
    start = captured(model_of("llama"), inputs, use_cache=True)
    assert start.cache is not None
    assert start.kept is not None
    samples, slots, width = start.hidden.shape
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in start.cache)
    small = start.bytes - held - samples * slots * width * 4 - inputs["input_ids"].numel() * (8 + 1 + 1)
    # Scores, vision marks, positions and fillers at the layer itself; the layer before holds the same tokens.
    assert small == samples * slots * (4 + 1 + 8 + 1)


# -- what these checks are worth


def _kept_moved(start: Prefix) -> Prefix:
    """One token in the middle is taken for its neighbour."""
    if start.kept is None:
        return start
    position = start.kept.position.clone()
    position[:, start.kept.slots // 2] -= 1
    return replace(start, kept=replace(start.kept, position=position))


def _held_moved(start: Prefix) -> Prefix:
    """The first value in the cache of the last layer in front is another."""
    assert start.cache is not None
    values = start.cache[-1].values.roll(1, -2)
    return replace(start, cache=(*start.cache[:-1], replace(start.cache[-1], values=values)))


def _ranked_otherwise(start: Prefix) -> Prefix:
    """What every token received is its neighbour's."""
    assert start.seen is not None
    assert start.seen.attention is not None
    return replace(start, seen=replace(start.seen, attention=start.seen.attention.roll(1, -1)))


FAULTS: dict[str, Callable[[Prefix], Prefix]] = {
    "hidden": lambda start: replace(start, hidden=start.hidden * (1 + 2**-22)),
    "position": _kept_moved,
    "fillers": lambda start: replace(start, kept=start.kept and replace(start.kept, valid=None)),
    "ranking": _ranked_otherwise,
    "cache": _held_moved,
}


@pytest.mark.parametrize("fault", quick_first(list(FAULTS)))
def test_a_wrong_prefix_is_noticed(model_of, monkeypatch, fault):
    """By a candidate of the few stages that families have."""
    post_init = PrefixRun.__post_init__

    def wrong(self: PrefixRun) -> None:
        self.start = None if self.start is None else FAULTS[fault](self.start)
        post_init(self)

    monkeypatch.setattr(PrefixRun, "__post_init__", wrong)
    with pytest.raises(AssertionError, match=r"^\([24], \("):
        check_stages(model_of("llama"), tiny.batch("varying"), "attention-rank", {}, True, FEWER)
