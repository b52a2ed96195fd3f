import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from scheduler_search.errors import ModelError
from scheduler_search.evaluation.models import LoadedModel, load_model
from scheduler_search.study.sections import ModelSection
from tests.evaluation.conftest import save_tiny_model


def load(path: Path | str, **keys: object) -> LoadedModel:
    return load_model(ModelSection.model_validate({"id": str(path), "device": "cpu", **keys}))


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_loads_a_directory_under_its_name(tiny_model: Path) -> None:
    loaded = load(tiny_model)
    assert (loaded.checkpoint.id, loaded.revision) == ("tiny", None)
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert loaded.processor.tokenizer.padding_side == "left"


def test_a_relative_directory_starts_at_the_working_folder(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)
    section = ModelSection(id=tiny_model.name, device="cpu")
    assert load_model(section).checkpoint.id == "tiny"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dtype_and_attention_are_those_asked_for(tiny_model: Path, dtype: str, attention: str) -> None:
    loaded = load(tiny_model, dtype=dtype, attention=attention)
    assert loaded.model.dtype == getattr(torch, dtype)
    assert loaded.model.config.text_config._attn_implementation == attention


def test_generation_is_plain_greedy_whatever_the_checkpoint_says(copy: Path) -> None:
    path = copy / "generation_config.json"
    settings = json.loads(path.read_text()) | {"repetition_penalty": 1.5, "do_sample": True, "temperature": 0.2}
    path.write_text(json.dumps(settings))
    loaded = load(copy)
    assert loaded.model.generation_config.repetition_penalty is None
    assert not loaded.model.generation_config.do_sample
    assert loaded.model.generation_config.eos_token_id == 3


def test_the_weights_digest_is_over_contents(tiny_model: Path, copy: Path, tmp_path: Path) -> None:
    assert load(tiny_model).weights == load(copy).weights
    assert load(tiny_model).weights != load(save_tiny_model(tmp_path / "other", seed=1)).weights


def test_the_files_digest_covers_the_processor(tiny_model: Path, copy: Path) -> None:
    assert load(tiny_model).files == load(copy).files
    (copy / "chat_template.jinja").write_text((copy / "chat_template.jinja").read_text() + "\n")
    assert load(tiny_model).files != load(copy).files


def test_a_tokenizer_without_padding_pads_with_its_end(copy: Path) -> None:
    path = copy / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    loaded = load(copy)
    assert loaded.processor.tokenizer.pad_token == "</s>"
    assert loaded.model.generation_config.pad_token_id == loaded.processor.tokenizer.eos_token_id


def test_a_processor_without_patch_size(copy: Path) -> None:
    path = copy / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": None}))
    with pytest.raises(ModelError, match="must know the patch size"):
        load(copy)


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"directory of the model must exist.*check \[model\] id"):
        load(tmp_path / "gone")


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must hold a config\.json"):
        load(tmp_path)


def test_a_model_without_safetensors(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="must be safetensors files"):
        load(copy)


def test_a_checkpoint_with_a_missing_weight(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    dropped = next(name for name in weights if name.endswith("layers.2.mlp.up_proj.weight"))
    del weights[dropped]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"must hold every weight of the model, but got 1 missing.*layers\.2\.mlp"):
        load(copy)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", "no tensors"),
        ("config.json", "{"),
        ("config.json", "{}"),
        ("config.json", '{"model_type": "bert"}'),
        ("config.json", '{"model_type": "no-such-family"}'),
        ("processor_config.json", "{"),
        ("tokenizer.json", "{}"),
    ],
)
def test_a_broken_file_is_one_line(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(ModelError) as caught:
        load(copy)
    assert "\n" not in str(caught.value)
    assert "copy" in str(caught.value)


def test_a_hub_model_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"check \[model\] id and revision, and the network") as caught:
        load("somebody/no-such-model")
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:9")  # the discard port: nobody answers
    with pytest.raises(ModelError, match="and the network"):
        load("somebody/no-such-model")


def test_an_unknown_testbed_model() -> None:
    with pytest.raises(ModelError, match="the testbed has testbed:tiny-llava"):
        load("testbed:huge")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a CUDA device")
def test_a_device_that_is_not_there(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="device of the model must exist"):
        load(tiny_model, device="cuda")
