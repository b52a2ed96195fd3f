"""Which configurations are served, and which are refused by name with the reason."""

from typing import Any

import pytest
import transformers

from scheduler_search.errors import UnsupportedError
from scheduler_search.rule import make_rule
from scheduler_search.runtime import apply_reduction, identify, model_shape
from scheduler_search.runtime.families import _FAMILIES
from scheduler_search.runtime.families.refused import REFUSED
from scheduler_search.schedule.values import Reduction
from tests.runtime.families import BUILDERS
from tests.runtime.families.builder import TEXT
from tests.runtime.tiny import IMAGE, reduction


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused_configurations(model_type):
    """Every name is one that transformers knows."""
    config = transformers.AutoConfig.for_model(model_type)
    with pytest.raises(UnsupportedError) as error:
        identify(config)
    assert error.value.rule == REFUSED[model_type]
    assert error.value.actual == model_type
    assert error.value.remedy


@pytest.mark.parametrize("family", [family for family in _FAMILIES if family.model_type != "gemma4"])
def test_default_configurations_are_served(family):
    """As transformers makes them, without a single value of the tests' own. That of Gemma 4 is of a refused model."""
    config = transformers.AutoConfig.for_model(family.model_type)
    assert identify(config).architecture == family.architecture
    assert hasattr(transformers, family.architecture)
    assert model_shape(config).vision_flops(576) > 0


def qwen35() -> Any:
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
    widths = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
    text = {**TEXT, **widths, "linear_value_head_dim": 16, "head_dim": 16, "rope_parameters": rotary}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    config = transformers.Qwen3_5Config(
        vision_config={**vision, "num_position_embeddings": 64}, text_config=text, image_token_id=IMAGE
    )
    return transformers.Qwen3_5ForConditionalGeneration(config)


def mllama() -> Any:
    text = {**TEXT, "cross_attention_layers": [3], "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "attention_heads": 2}
    vision = {**vision, "num_global_layers": 1, "image_size": 48, "patch_size": 8, "intermediate_layers_indices": [0]}
    config = transformers.MllamaConfig(vision_config={**vision, "vision_output_dim": 64}, text_config=text)
    return transformers.MllamaForConditionalGeneration(config)


def blip2() -> Any:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    former = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
    config = transformers.Blip2Config(
        vision_config={**vision, "image_size": 48, "patch_size": 8},
        qformer_config={**former, "encoder_hidden_size": 32},
        text_config={**text, "word_embed_proj_dim": 32, "vocab_size": 100},
        image_token_index=IMAGE,
    )
    return transformers.Blip2ForConditionalGeneration(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "reason"), [(qwen35, "recurrence"), (mllama, "cross-attention"), (blip2, "query transformer")]
)
def test_refused_models(build, reason):
    model = build()
    layers = model.config.get_text_config().num_hidden_layers
    before = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
    with pytest.raises(UnsupportedError, match=reason) as error:
        apply_reduction(model, Reduction((1.0,) * (layers - 1) + (0.5,), make_rule("attention-rank")))
    assert error.value.actual == type(model).__name__
    assert {name: len(module._forward_pre_hooks) for name, module in model.named_modules()} == before


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("num_kv_shared_layers", 2, "keys and values, but got 2 layers"),
        ("hidden_size_per_layer_input", 8, "embeddings of width 8 for each layer"),
    ],
)
def test_gemma4_with_layers_that_share(field, value, reason):
    config = BUILDERS["gemma4"].config()
    identify(config)
    setattr(config.text_config, field, value)
    with pytest.raises(UnsupportedError, match=reason) as error:
        identify(config)
    assert error.value.remedy


@pytest.mark.slow
def test_llama4_where_queries_are_scaled_by_their_index():
    """Layers without rotary count what they are given; at ``floor_scale`` tokens that starts to matter."""
    builder = BUILDERS["llama4"]
    model, inputs = builder.build(), builder.batch(builder.samples("single"))
    slots = inputs["input_ids"].shape[1]
    for scale, served in ((slots + 1, True), (slots, False)):
        for module in model.modules():
            if hasattr(module, "floor_scale"):
                module.floor_scale = scale
        model.config.text_config.floor_scale = scale
        with apply_reduction(model, reduction()):
            if served:
                model(**inputs)
            else:
                with pytest.raises(UnsupportedError, match=f"shorter than {slots} tokens") as error:
                    model(**inputs)
                assert error.value.remedy
        model(**inputs)
