from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlavaProcessor

from scheduler_search.testbed.generator import generate
from scheduler_search.testbed.model import VISION_TOKENS, pixel_values
from scheduler_search.testbed.processor import build_processor
from scheduler_search.testbed.vocabulary import BOS, EOS, IMAGE, UNKNOWN, WORD_IDS


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return build_processor()


def _chat(question: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def test_the_chat_template_renders_the_image_and_the_words(processor: LlavaProcessor) -> None:
    text = processor.apply_chat_template(_chat("color left of circle"), add_generation_prompt=True)
    assert text == "<image> color left of circle"


def test_rendered_text_is_tokenised_with_one_beginning(processor: LlavaProcessor) -> None:
    question = generate("train", 1, 0)[0]
    text = processor.apply_chat_template(_chat(question.question), add_generation_prompt=True)
    ids = processor(images=question.image, text=text, return_tensors="pt")["input_ids"][0].tolist()
    words = [WORD_IDS[word] for word in question.question.split()]
    assert ids == [WORD_IDS[BOS], *[WORD_IDS[IMAGE]] * VISION_TOKENS, *words]


def test_tokenising_the_chat_gives_the_same_ids(processor: LlavaProcessor) -> None:
    question = generate("train", 1, 1)[0]
    chat = _chat(question.question)
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    rendered = processor(images=question.image, text=text, return_tensors="pt")
    chat[0]["content"][0]["image"] = question.image
    direct = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert torch.equal(torch.as_tensor(direct["input_ids"]), rendered["input_ids"])


def test_an_answered_chat_ends_each_answer(processor: LlavaProcessor) -> None:
    chat = [*_chat("color of circle"), {"role": "assistant", "content": [{"type": "text", "text": "red"}]}]
    assert processor.apply_chat_template(chat) == "<image> color of circle red </s>"
    ids = processor.tokenizer("color of circle red </s>")["input_ids"]
    assert ids[-1] == WORD_IDS[EOS]


def test_images_become_what_training_saw(processor: LlavaProcessor) -> None:
    image = generate("train", 1, 2)[0].image
    processed = processor(images=image, text="<image> color of circle", return_tensors="pt")["pixel_values"]
    assert torch.allclose(processed, pixel_values([np.asarray(image)]), atol=1e-6)


def test_unknown_words_are_unknown(processor: LlavaProcessor) -> None:
    assert processor.tokenizer("circle elephant")["input_ids"][1:] == [WORD_IDS["circle"], WORD_IDS[UNKNOWN]]


def test_batches_are_padded_on_the_left(processor: LlavaProcessor) -> None:
    mask = processor.tokenizer(["color of circle", "shape same color as ring"], padding=True)["attention_mask"]
    assert mask[0][:3] == [0, 0, 1]
