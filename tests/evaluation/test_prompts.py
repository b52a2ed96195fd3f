from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from scheduler_search.errors import DataError, ModelError
from scheduler_search.evaluation.prompts import make_prompt


@pytest.fixture
def processor(tiny_model: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_model)


def test_auto_is_the_chat_template(processor: Any) -> None:
    assert make_prompt("auto", processor, "tiny").text("where is red", "line 1") == "<image> where is red"


def test_auto_without_a_chat_template_is_image_and_question(processor: Any) -> None:
    processor.chat_template = None
    assert make_prompt("auto", processor, "tiny").text("where is red", "line 1") == "<image>\nwhere is red"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("USER: {question} ASSISTANT:", "<image>\nUSER: where is red ASSISTANT:"),
        ("USER: <image> {question} ASSISTANT:", "USER: <image> where is red ASSISTANT:"),
        ("{{question}} {question}", "<image>\n{where is red} where is red"),
    ],
)
def test_templates_of_the_study_file(processor: Any, template: str, text: str) -> None:
    assert make_prompt(template, processor, "tiny").text("where is red", "line 1") == text


def test_a_question_with_braces_stays_as_it_is(processor: Any) -> None:
    assert make_prompt("{question}", processor, "tiny").text("a {question}", "line 1") == "<image>\na {question}"


def test_a_question_must_not_bring_an_image(processor: Any) -> None:
    with pytest.raises(DataError, match=r"must not contain the image placeholder <image> \(in line 1\)"):
        make_prompt("auto", processor, "tiny").text("<image> where", "line 1")


@pytest.mark.parametrize("template", ["<image><image>{question}"])
def test_a_template_with_two_images_is_refused(processor: Any, template: str) -> None:
    with pytest.raises(ModelError, match="must have one image placeholder"):
        make_prompt(template, processor, "tiny")


def test_a_chat_template_that_forgets_the_image_is_refused(processor: Any) -> None:
    processor.chat_template = "{{ messages[0]['content'][1]['text'] }}"
    with pytest.raises(ModelError, match="must have one image placeholder"):
        make_prompt("auto", processor, "tiny")


@pytest.mark.parametrize("template", ["auto", "{question}", "<s> {question}", "<s> <image> {question}"])
def test_one_beginning_whoever_writes_it(processor: Any, template: str) -> None:
    prompt = make_prompt(template, processor, "tiny")
    text = prompt.text("where is red", "line 1")
    ids = processor.tokenizer(text, add_special_tokens=prompt.adds_special_tokens(text))["input_ids"]
    assert (ids[0], ids.count(processor.tokenizer.bos_token_id)) == (processor.tokenizer.bos_token_id, 1)
