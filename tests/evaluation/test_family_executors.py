"""Whole studies on families whose images have different numbers of vision tokens, with their real processors.

Only processors that can be built without a download and without torchvision: LLaVA-NeXT and Idefics3. The other
families meet the executor's feature store in ``test_family_features``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from PIL import Image

from scheduler_search.evaluation import LocalExecutor
from scheduler_search.evaluation.batches import Part, direct_arguments, make_batch
from scheduler_search.evaluation.scoring import first_logits
from scheduler_search.runtime import apply_reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkTask
from scheduler_search.testbed.processor import CHAT_TEMPLATE, build_tokenizer
from tests.evaluation.conftest import write_jsonl
from tests.runtime.families import BUILDERS
from tests.runtime.tiny import reduction

IMAGE_ID = 4  # of the testbed's tokenizer
SIZES = ((80, 80), (40, 96), (64, 96))  # height, width
# Per image: LLaVA-NeXT as in tests/runtime/families/tiled.py; Idefics3 five tiles of 36, three, and five.
EXPECTED = {"llava-next": (192, 114, 140), "idefics3": (180, 108, 180)}


def llava_next_processor() -> Any:
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 48},
        crop_size={"height": 48, "width": 48},
        image_grid_pinpoints=[[48, 96], [96, 48], [96, 96]],
    )
    return transformers.LlavaNextProcessor(
        images,
        build_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def idefics3_processor() -> Any:
    tokenizer = build_tokenizer()
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    marks = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    images = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 96}, max_image_size={"longest_edge": 48})
    return transformers.Idefics3Processor(images, tokenizer, image_seq_len=36, chat_template=CHAT_TEMPLATE)


PROCESSORS: dict[str, Callable[[], Any]] = {"llava-next": llava_next_processor, "idefics3": idefics3_processor}


@pytest.fixture(params=PROCESSORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def worker(name: str, tmp_path: Path) -> Iterator[LocalExecutor]:
    """An executor over six questions about images of three sizes, in chunks of four."""
    model = BUILDERS[name].build()
    model.config.image_token_id = IMAGE_ID
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=3)
    model.save_pretrained(tmp_path / "model")
    PROCESSORS[name]().save_pretrained(tmp_path / "model")
    records = []
    for index in range(6):
        pixels = numpy.random.default_rng(index).integers(0, 256, (*SIZES[index % 3], 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        question = ("where is red", "how many blue circle")[index % 2]
        records.append({"image": f"{index}.png", "question": question, "answers": ["red"]})
    path = write_jsonl(tmp_path / "data.jsonl", records)
    tables = {
        "name": name,
        "seed": 0,
        "model": {"id": str(tmp_path / "model"), "device": "cpu"},
        "data": {"source": "jsonl", "path": str(path), "search": {"samples": 6}, "chunk": 4},
    }
    threads = torch.get_num_threads()
    yield LocalExecutor(StudyDefinition.model_validate(tables))
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_study(name: str, worker: LocalExecutor) -> None:
    split = worker.split("search")
    assert sorted(split.vision_tokens) == sorted(EXPECTED[name] * 2)
    assert worker.model().identity.architecture == type(BUILDERS[name].build()).__name__
    tasks = [ChunkTask("search", chunk, applied) for applied in (reduction((1.0,)), reduction()) for chunk in (0, 1)]
    scores = {result.task: result.scores for result in worker.run(tasks)}
    assert {result.task: result.scores for result in worker.run(tasks[::-1])} == scores
    assert [len(scores[task]) for task in tasks] == [4, 2, 4, 2]


@pytest.mark.slow
def test_stored_features_change_no_bit(worker: LocalExecutor) -> None:
    loaded, prompt = worker._load()
    batch = make_batch(worker._samples("search")[:4], prompt, loaded.model)
    assert (batch.language["attention_mask"] == 0).any()
    with torch.inference_mode():
        for applied in (reduction((1.0,)), reduction()):
            with apply_reduction(loaded.model, applied):
                direct = first_logits(loaded.model, direct_arguments(batch, loaded.device))
                stored = first_logits(loaded.model, Part(batch).arguments(loaded.model, loaded.device))
            assert torch.equal(stored, direct)
