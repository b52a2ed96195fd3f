"""A random LLaVA of four decoder layers with the testbed's processor, and small JSONL data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.testbed.processor import build_processor

LAYERS = 4
VOCABULARY = 60


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-1)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def write_image(path: Path, seed: int, size: int = 64) -> Path:
    pixels = numpy.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=numpy.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


QUESTIONS = ("color of circle", "shape at b3 left of red ring", "where is red", "how many blue")
ANSWERS = ("red", "circle", "b3", "two")


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty questions about ten images, answers of one token, prompts of different lengths."""
    folder = tmp_path_factory.mktemp("data")
    records = [
        {"image": f"images/{index // 2}.png", "question": QUESTIONS[index % 4], "answers": [ANSWERS[index % 4]]}
        for index in range(20)
    ]
    for index in range(10):
        write_image(folder / f"images/{index}.png", index)
    return write_jsonl(folder / "vqa.jsonl", records)


@pytest.fixture
def definition(tiny_model: Path, data_file: Path) -> Callable[..., StudyDefinition]:
    """A study on the tiny model; ``definition(data={"chunk": 3})`` changes single keys of sections."""

    def make(**changes: Any) -> StudyDefinition:
        tables: dict[str, Any] = {
            "name": "tiny",
            "seed": 0,
            "model": {"id": str(tiny_model), "device": "cpu"},
            "data": {
                "source": "jsonl",
                "path": str(data_file),
                "search": {"samples": 7},
                "validation": {"samples": 4},
                "chunk": 4,
            },
        }
        for section, keys in changes.items():
            tables[section] = {**tables.get(section, {}), **keys} if isinstance(keys, dict) else keys
        return StudyDefinition.model_validate(tables)

    return make


def uniform_from_second(rate: float) -> Reduction:
    return Reduction((1.0,) + (rate,) * (LAYERS - 1), make_rule("attention-rank"))


FULL = uniform_from_second(1.0)
REDUCED = uniform_from_second(0.25)


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    """An executor sets the threads of torch; the next test has those of before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
