from __future__ import annotations

import json
import re

import pytest
import torch
from scipy.stats import binom
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from scheduler_search.testbed import MODEL_NAME, Question, checkpoint, generate
from scheduler_search.testbed.model import VISION_TOKENS
from scheduler_search.testbed.processor import build_processor
from scheduler_search.testbed.vocabulary import WORD_IDS

FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(checkpoint())


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return AutoProcessor.from_pretrained(checkpoint())


def test_it_is_a_llava_of_the_promised_size(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    assert isinstance(model, LlavaForConditionalGeneration)
    assert isinstance(processor, LlavaProcessor)
    assert checkpoint().name == MODEL_NAME
    assert len(model.model.language_model.layers) == 12
    assert VISION_TOKENS == 64
    assert sum(path.stat().st_size for path in checkpoint().iterdir()) <= 8_000_000


def test_weights_load_as_float32_though_they_are_stored_in_half(model: LlavaForConditionalGeneration) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.equal(parameter, parameter.half().float()) for parameter in model.parameters())


def test_files_name_no_place_on_any_machine() -> None:
    for path in checkpoint().glob("*.json"):
        values = re.findall(r'"((?:/|~|[A-Z]:)[^"]*)"', path.read_text())
        assert values == [], path.name
    assert not json.loads((checkpoint() / "config.json").read_text()).get("_name_or_path")


def test_the_stored_processor_is_the_one_that_is_built(processor: LlavaProcessor) -> None:
    built = build_processor()
    assert processor.chat_template == built.chat_template
    assert processor.tokenizer.get_vocab() == dict(WORD_IDS)
    assert processor.image_processor.to_dict() == built.image_processor.to_dict()


def _answers(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, questions: list[Question], blank: bool = False
) -> list[str]:
    texts = []
    for question in questions:
        content = [{"type": "image"}, {"type": "text", "text": question.question}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    inputs = processor(images=[q.image for q in questions], text=texts, padding=True, return_tensors="pt")
    if blank:
        features = torch.zeros(len(questions), VISION_TOKENS, model.config.text_config.hidden_size)
        pixels, inputs = inputs.pop("pixel_values"), dict(inputs)
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        places = inputs["input_ids"] == model.config.image_token_id
        inputs = {
            "inputs_embeds": embedded.masked_scatter(places[..., None], features),
            "attention_mask": inputs["attention_mask"],
        }
        assert len(pixels) == len(questions)
        tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    else:
        tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(tokens, skip_special_tokens=True)


def _right(answers: list[str], questions: list[Question]) -> int:
    return sum(answer == question.answer for answer, question in zip(answers, questions, strict=True))


def _readme_accuracy(row: str) -> float:
    readme = (checkpoint().parent / "README.md").read_text()
    found = re.search(rf"^\| {row} \| (\d\.\d+)", readme, re.MULTILINE)
    assert found is not None
    return float(found[1])


@pytest.mark.slow
def test_generate_answers_as_often_as_the_readme_says(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> None:
    # Fresh questions (the README's are seed 0); greedy generation must also stop after the one word.
    questions = generate("test", 200, 17)
    least = binom.ppf(FALSE_ALARM, 200, _readme_accuracy("all vision tokens"))
    assert _right(_answers(model, processor, questions), questions) >= least


@pytest.mark.slow
def test_without_the_image_answers_are_near_chance(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> None:
    # No better than the blind baseline, which answers the most frequent word.
    questions = generate("test", 200, 18)
    blind = _readme_accuracy("blind: the most frequent answer to the same words")
    most = binom.ppf(1 - FALSE_ALARM, 200, blind)
    assert _right(_answers(model, processor, questions, blank=True), questions) <= most
