"""Identity, shape, and apply_schedule with its refusal of other models."""

from pathlib import Path

import pytest
import torch

from scheduler_search.errors import ScheduleDocumentError, ScheduleMismatchError
from scheduler_search.runtime import apply_schedule, identify, model_shape, vision_tokens
from scheduler_search.schedule.cost import prefill_flops
from scheduler_search.schedule.values import Schedule
from tests.runtime.tiny import IMAGE, LAYERS, TOKENS, batch, build, reduction


def test_identity_of_a_model_and_of_its_configuration():
    model = build()
    identity = identify(model)
    assert identity.architecture == "LlavaForConditionalGeneration"
    assert (identity.decoder_layers, identity.vision_layers) == (LAYERS, 3)
    assert identity.config_digest.startswith("sha256:")
    assert identify(model.config).config_digest == identity.config_digest
    assert identify(model, id="me/mine", revision="abc").id == "me/mine"
    assert identify(model, id="me/mine", revision="abc").revision == "abc"


@pytest.mark.parametrize(
    ("loaded_from", "expected"),
    [
        ("llava-hf/llava-1.5-7b-hf", ("llava-hf/llava-1.5-7b-hf", "main")),
        ("/home/somebody/models/tiny-llava", ("tiny-llava", "local")),
        ("./models/tiny-llava/", ("tiny-llava", "local")),
        ("models/v1/tiny-llava", ("tiny-llava", "local")),
        ("", ("llava", "local")),
        ("/cache/hub/models--llava-hf--llava-1.5-7b-hf/snapshots/0123abc", ("llava-hf/llava-1.5-7b-hf", "0123abc")),
    ],
)
def test_the_id_is_never_a_path(loaded_from, expected):
    config = build().config
    config._name_or_path = loaded_from
    identity = identify(config)
    assert (identity.id, identity.revision) == expected


def test_a_directory_that_exists_gives_its_name(tmp_path, monkeypatch):
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = build().config
    config._name_or_path = "org/tiny"
    assert identify(config).id == "tiny"


def test_the_digest_covers_shapes_only():
    base = identify(build()).config_digest
    same = build(seed=3, attention="eager").to(torch.bfloat16)
    same.config._name_or_path = "/elsewhere"
    same.config.transformers_version = "9.9"
    same.config.text_config.rms_norm_eps = 1e-3
    assert identify(same).config_digest == base
    for other in (build("qwen2"), build(layers=5)):
        assert identify(other).config_digest != base
    for part, field, value in (
        ("text_config", "vocab_size", 101),
        ("text_config", "num_key_value_heads", 4),
        ("vision_config", "image_size", 56),
    ):
        config = build().config
        setattr(getattr(config, part), field, value)
        assert identify(config).config_digest != base


def test_the_digest_survives_saving(tmp_path):
    model = build("mistral")
    model.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert identify(loaded).config_digest == identify(model).config_digest
    assert identify(loaded).id == "saved"


def test_vision_tokens():
    model, inputs = build(), batch("mixed")
    found = vision_tokens(model, inputs["input_ids"])
    assert torch.equal(found, inputs["input_ids"] == IMAGE)
    assert torch.equal(vision_tokens(model.config, inputs["input_ids"]), found)
    assert found.sum(1).tolist() == [2 * TOKENS, 0, TOKENS]


@pytest.mark.parametrize("decoder", ["llama", "qwen2", "mistral"])
def test_the_shape_agrees_with_the_counter_of_torch(decoder):
    from torch.utils.flop_counter import FlopCounterMode

    model, inputs = build(decoder, "eager"), batch("single")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs, logits_to_keep=1)
    flops = prefill_flops(model_shape(model), (1.0,) * LAYERS, TOKENS, 10)
    assert abs(flops / counter.get_total_flops() - 1) < 0.01


def test_apply_schedule():
    model = build()
    schedule = Schedule(identify(model), reduction())
    with apply_schedule(model, schedule) as handle:
        model(**batch())
        assert handle.report().layers[-1].vision_tokens == (7, 7, 7)


def test_a_schedule_for_another_model():
    model, other = build(), build("qwen2")
    schedule = Schedule(identify(other, id="org/other"), reduction())
    with pytest.raises(ScheduleMismatchError, match=r"for org/other.*allow_other_model=True"):
        apply_schedule(model, schedule)
    apply_schedule(model, schedule, allow_other_model=True).remove()
    deeper = build(layers=LAYERS + 1)
    with pytest.raises(ScheduleMismatchError, match=f"decoder of {LAYERS} layers, but got {LAYERS + 1}"):
        apply_schedule(deeper, schedule, allow_other_model=True)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ScheduleDocumentError):
        apply_schedule(build(), tmp_path / "missing.json")
