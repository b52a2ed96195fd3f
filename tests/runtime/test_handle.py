"""Hooks come off without a trace, and models, threads and failed passes do not see each other."""

import threading
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime import apply_reduction
from tests.runtime.tiny import batch, build, generate, reduction


def state_of(model: Any) -> dict[str, Any]:
    """Everything that hooking could leave behind: attributes and hooks of every module, and the attention mapping."""
    state: dict[str, Any] = {"mapping": dict(ALL_ATTENTION_FUNCTIONS._local_mapping)}
    for name, module in model.named_modules():
        attributes = vars(module)
        hooks = {key: list(value) for key, value in attributes.items() if "hook" in key and isinstance(value, dict)}
        state[name] = (sorted(attributes), hooks)
    return state


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_on_differs_off_equals_base_on_again_equals_on(attention):
    model, inputs = build("llama", attention), batch()
    base = generate(model, inputs)  # transformers installs hooks of its own at a tower's first pass
    before = state_of(model)
    handle = apply_reduction(model, reduction())
    on = generate(model, inputs)
    handle.remove()
    assert state_of(model) == before
    off = generate(model, inputs)
    with apply_reduction(model, reduction()):
        again = generate(model, inputs)
    assert state_of(model) == before
    assert not torch.equal(on[1], base[1])
    for one, other in ((off, base), (again, on)):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_removing_twice_is_removing_once():
    model = build()
    first = apply_reduction(model, reduction())
    first.remove()
    with apply_reduction(model, reduction()) as second:
        first.remove()  # must not take the second schedule's guard or listeners away
        assert vars(model)["generate"].handle is second
        assert second._tap is not None
        assert second._tap.listeners


def test_a_second_schedule_on_one_model_is_refused():
    model = build()
    with apply_reduction(model, reduction()), pytest.raises(UnsupportedError, match="one schedule at a time"):
        apply_reduction(model, reduction())
    apply_reduction(model, reduction()).remove()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hooked_models_in_one_process_do_not_mix(attention):
    first, second, inputs = build("llama", attention), build("qwen2", attention, seed=1), batch()
    rates = (1.0, 1.0, 0.3)
    expected = []
    for model, applied in ((first, reduction()), (second, reduction(rates))):
        with apply_reduction(model, applied):
            expected.append(model(**inputs).logits)
    one, two = apply_reduction(first, reduction()), apply_reduction(second, reduction(rates))
    assert torch.equal(first(**inputs).logits, expected[0])
    assert torch.equal(second(**inputs).logits, expected[1])
    one.remove()
    assert torch.equal(second(**inputs).logits, expected[1])
    assert attention in ALL_ATTENTION_FUNCTIONS._local_mapping
    two.remove()
    assert not ALL_ATTENTION_FUNCTIONS._local_mapping


def test_an_attention_function_that_stood_there_comes_back():
    model, inputs, calls = build(), batch(), []
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = counting
    try:
        with apply_reduction(model, reduction()):
            model(**inputs)
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is counting
        assert calls
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def test_a_function_put_in_front_of_the_tap_stays():
    model, inputs = build(), batch()
    handle = apply_reduction(model, reduction())
    tap = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def in_front(*args: Any, **kwargs: Any) -> Any:
        return tap(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = in_front
    try:
        expected = model(**inputs).logits
        handle.remove()
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is in_front
        assert not tap.listeners
        assert model(**inputs).logits.shape != expected.shape
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def test_ranking_without_the_tap_is_refused():
    model = build()
    with apply_reduction(model, reduction()):
        tap = ALL_ATTENTION_FUNCTIONS["sdpa"]
        ALL_ATTENTION_FUNCTIONS["sdpa"] = tap.function
        with pytest.raises(UnsupportedError, match="must pass through the tap"):
            model(**batch())
        ALL_ATTENTION_FUNCTIONS["sdpa"] = tap


class BoomError(Exception):
    pass


@pytest.mark.parametrize("layer", [0, 3, 5])
def test_an_exception_leaves_no_state_behind(layer):
    model, inputs = build(), batch()

    def boom(*_: Any) -> None:
        raise BoomError

    with apply_reduction(model, reduction()) as handle:
        expected = generate(model, inputs)
        hook = model.get_decoder().layers[layer].register_forward_hook(boom)
        with pytest.raises(BoomError):
            model(**inputs)
        hook.remove()
        assert handle._pass.state is None
        assert handle._pass.plan is None
        again = generate(model, inputs)
    assert torch.equal(again[1], expected[1])


def test_threads_share_a_model():
    """Four threads, different batches, one hooked model: everybody gets what they get alone."""
    model = build()
    batches = [batch(name) for name in ("padded", "varying", "mixed", "single")]
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                if not torch.equal(model(**batches[index]).logits, expected[index]):
                    wrong.append(index)

    with apply_reduction(model, reduction((1.0, 0.8, 0.7, 0.5, 0.3, 0.2))):
        expected = [model(**inputs).logits for inputs in batches]
        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_applying_is_cheap():
    """Evaluation applies a reduction once per chunk. Median of 50: one slow moment does not fail it."""
    import time

    model, applied = build(layers=12), reduction(tuple([1.0, 1.0] + [0.5] * 10))
    durations = []
    for _ in range(50):
        start = time.perf_counter()
        apply_reduction(model, applied).remove()
        durations.append(time.perf_counter() - start)
    assert sorted(durations)[25] < 0.005


def test_nothing_runs_where_nothing_is_reduced():
    model = build()
    with apply_reduction(model, reduction((1.0, 1.0, 1.0, 0.5))):
        hooked = [bool(layer._forward_pre_hooks) for layer in model.get_decoder().layers]
        assert hooked == [True, False, False, True, True, True]
        tap = ALL_ATTENTION_FUNCTIONS["sdpa"]
        assert set(tap.listeners) == {layer.self_attn for layer in model.get_decoder().layers[2:5]}


def test_report():
    model, inputs = build(), batch("mixed")
    with apply_reduction(model, reduction()) as handle:
        with pytest.raises(UnsupportedError, match="needs a prefill"):
            handle.report()
        cache = model(**inputs).past_key_values
        report = handle.report()
    assert report.vision_tokens == (72, 0, 36)
    assert [layer.vision_tokens for layer in report.layers] == [
        (72, 0, 36), (72, 0, 36), (50, 0, 25), (36, 0, 18), (36, 0, 18), (14, 0, 7),
    ]  # fmt: skip
    assert [layer.tokens for layer in report.layers] == [layer.keys.shape[-2] for layer in cache.layers]
    assert report.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert [layer.layer for layer in report.layers] == [1, 2, 3, 4, 5, 6]
