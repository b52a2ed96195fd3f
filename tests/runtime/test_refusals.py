"""What the runtime says no to, each with one line that names reason and remedy, and nothing left behind."""

from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scheduler_search.errors import ScheduleMismatchError, UnsupportedError
from scheduler_search.rule import make_rule
from scheduler_search.runtime import apply_reduction
from scheduler_search.runtime.families.llava import Llava
from scheduler_search.schedule.values import Reduction
from tests.runtime.tiny import LAYERS, RATES, batch, build, reduction


@pytest.fixture
def model() -> Any:
    return build()


def assert_refused(error: pytest.ExceptionInfo[UnsupportedError]) -> None:
    assert error.value.remedy
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_other_architectures():
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    with pytest.raises(UnsupportedError, match=r"LlavaForConditionalGeneration.*but got LlamaForCausalLM") as error:
        apply_reduction(transformers.LlamaForCausalLM(config), reduction())
    assert_refused(error)


def test_other_decoders(model):
    model.config.text_config.model_type = "phi3"
    with pytest.raises(UnsupportedError, match="decoder must be one of llama, mistral, qwen2, but got 'phi3'") as error:
        apply_reduction(model, reduction())
    assert_refused(error)


@pytest.mark.slow
# torch warns about its own use of torch.jit when torch.compile is first imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("compiled", ["wrapped", "in-place"])
def test_compiled_models(model, compiled):
    if compiled == "wrapped":
        model = torch.compile(model)
    else:
        model.compile()
    with pytest.raises(UnsupportedError, match=r"compiled") as error:
        apply_reduction(model, reduction())
    assert_refused(error)


COMPILED_PARTS = {
    "model": lambda model: model,
    "base-model": lambda model: model.model,
    "decoder": lambda model: model.get_decoder(),
    "layer": lambda model: model.get_decoder().layers[3],
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("part", COMPILED_PARTS)
def test_compiled_parts(model, part):
    COMPILED_PARTS[part](model).compile(backend="eager")
    with pytest.raises(UnsupportedError, match="not compiled, but got a compiled") as error:
        apply_reduction(model, reduction())
    assert_refused(error)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("way", ["wrapped", *COMPILED_PARTS])
def test_compiling_a_hooked_model(model, way):
    """Refused at the next pass, whichever part is compiled; the model itself is as it was."""
    with apply_reduction(model, reduction()):
        if way == "wrapped":
            compiled = torch.compile(model, backend="eager")
        else:
            COMPILED_PARTS[way](model).compile(backend="eager")
            compiled = model
        with pytest.raises(UnsupportedError, match="cannot be compiled") as error:
            compiled(**batch())
        assert_refused(error)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_compiling_after_removal_works():
    """Nothing of the hooks is left for a trace to find."""
    model, inputs = build(layers=2), batch()
    expected = model(**inputs).logits
    apply_reduction(model, Reduction((1.0, 0.5), make_rule("attention-rank"))).remove()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**inputs).logits, expected, atol=1e-5, rtol=0)
    torch._dynamo.reset()


@pytest.mark.parametrize("implementation", ["flash_attention_3", "flex_attention"])
def test_other_attention(model, implementation):
    model.config.text_config._attn_implementation = implementation
    with pytest.raises(UnsupportedError, match="must be 'eager' or 'flash_attention_2' or 'sdpa'") as error:
        apply_reduction(model, reduction())
    assert_refused(error)


def test_attention_that_changes_under_a_schedule(model):
    with apply_reduction(model, reduction()):
        model.set_attn_implementation("eager")
        with pytest.raises(UnsupportedError, match="apply the schedule again"):
            model(**batch())


def test_layers_that_must_see_every_token(model, monkeypatch):
    """No family needs it so far: one that would is made up."""
    monkeypatch.setattr(Llava, "whole_layers", 2)
    with pytest.raises(UnsupportedError, match=r"first 2 decoder layers .* keep rates 1, 0\.5") as error:
        apply_reduction(model, reduction((1.0, 0.5, 0.5)))
    assert_refused(error)
    apply_reduction(model, reduction((1.0, 1.0, 0.5))).remove()


@pytest.mark.parametrize("layers", [LAYERS - 1, LAYERS + 1])
def test_another_number_of_layers(model, layers):
    applied = Reduction((1.0,) * layers, make_rule("attention-rank"))
    with pytest.raises(ScheduleMismatchError, match=f"decoder of {layers} layers, but got {LAYERS}"):
        apply_reduction(model, applied)
    assert not ALL_ATTENTION_FUNCTIONS._local_mapping


def caches(model: Any) -> dict[str, Any]:
    text = model.config.text_config
    return {
        "static": StaticCache(config=text, max_cache_len=80),
        "offloaded": _offloaded(text),
        "quantised": QuantizedCacheLike(config=text),
    }


class QuantizedCacheLike(DynamicCache):
    """The real one needs a backend that is not installed; it is a subclass too, and as such refused."""


def _offloaded(config: Any) -> DynamicCache:
    cache = DynamicCache(config=config)
    cache.offloading = True  # as the constructor sets it, which needs an accelerator
    return cache


@pytest.mark.parametrize("kind", ["static", "offloaded", "quantised"])
def test_other_caches(model, kind):
    with apply_reduction(model, reduction()):
        with pytest.raises(UnsupportedError, match="plain DynamicCache") as error:
            model(**batch(), past_key_values=caches(model)[kind])
        assert_refused(error)
        model(**batch())


@pytest.mark.parametrize("implementation", ["static", "quantized", "offloaded", "offloaded_static"])
def test_cache_implementations(model, implementation):
    with apply_reduction(model, reduction()):
        with pytest.raises(UnsupportedError, match="plain DynamicCache") as error:
            model.generate(**batch(), max_new_tokens=2, cache_implementation=implementation)
        assert_refused(error)
        model.generate(**batch(), max_new_tokens=2, do_sample=False, cache_implementation="dynamic")


@pytest.mark.parametrize("way", ["keyword", "config", "positional", "model"])
def test_chunked_prefill(model, way):
    config = transformers.GenerationConfig(prefill_chunk_size=8, max_new_tokens=2)
    calls = {
        "keyword": lambda: model.generate(**batch(), prefill_chunk_size=8, max_new_tokens=2),
        "config": lambda: model.generate(**batch(), generation_config=config),
        "positional": lambda: model.generate(batch()["input_ids"], config),
        "model": lambda: model.generate(**batch(), max_new_tokens=2),
    }
    if way == "model":
        model.generation_config.prefill_chunk_size = 8
    with apply_reduction(model, reduction()):
        with pytest.raises(UnsupportedError, match="in one piece") as error:
            calls[way]()
        assert_refused(error)


def test_packed_sequences(model):
    inputs = {name: part[:1] for name, part in batch("equal").items()}
    lengths = {"cu_seq_lens_q": torch.tensor([0, 20, 46]), "cu_seq_lens_k": torch.tensor([0, 20, 46])}
    with apply_reduction(model, reduction()):
        with pytest.raises(UnsupportedError, match="one prompt, since its tokens are ranked together") as error:
            model(**inputs, **lengths)
        assert_refused(error)
        del inputs["attention_mask"]
        positions = torch.cat([torch.arange(20), torch.arange(26)])[None]
        with pytest.raises(UnsupportedError, match="but got packed sequences"):
            model(**inputs, position_ids=positions, use_cache=False)
        model(**inputs, position_ids=torch.arange(46)[None], use_cache=False)


def test_labels(model):
    with apply_reduction(model, reduction()):
        with pytest.raises(UnsupportedError, match="labels cannot be used") as error:
            model(**batch(), labels=batch()["input_ids"])
        assert_refused(error)


def test_embeddings_without_ids(model):
    inputs = batch()
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with apply_reduction(model, reduction()):
        with pytest.raises(UnsupportedError, match="input_ids must be given") as error:
            model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
        assert_refused(error)


def test_prepared_masks(model):
    inputs = batch()
    length = inputs["input_ids"].shape[1]
    inputs["attention_mask"] = torch.ones(3, 1, length, length, dtype=torch.bool).tril()
    with apply_reduction(model, reduction()):
        with pytest.raises(UnsupportedError, match="4 dimensions") as error:
            model(**inputs)
        assert_refused(error)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing(model):
    model.train()
    model.gradient_checkpointing_enable()
    with apply_reduction(model, reduction()):
        with pytest.raises(UnsupportedError, match="gradient checkpointing") as error:
            model(**batch(), use_cache=False)
        assert_refused(error)


def test_pooling_tokens_that_are_no_images(model):
    """29 image tokens instead of 36: the model would complain too, but later."""
    inputs = batch("single")
    inputs["input_ids"][0, 3:10] = 5
    with apply_reduction(model, reduction((0.5,) * LAYERS, entry="pooling")):
        with pytest.raises(UnsupportedError, match="whole images of 6 x 6 patches, but got 29") as error:
            model(**inputs)
        assert_refused(error)


def test_pooling_with_a_class_token(model):
    model.config.vision_feature_select_strategy = "full"
    with apply_reduction(model, reduction((0.5,) * LAYERS, entry="pooling")):
        with pytest.raises(UnsupportedError, match="patches only") as error:
            model(**batch())
        assert_refused(error)


def test_a_schedule_that_keeps_all_refuses_nothing(model):
    inputs = batch()
    with apply_reduction(model, Reduction((1.0,) * LAYERS, make_rule("attention-rank"))):
        model(**inputs, past_key_values=StaticCache(config=model.config.text_config, max_cache_len=80))
        model(**inputs, labels=inputs["input_ids"])
    assert RATES[0] == 1.0
