from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from scheduler_search.evaluation import scoring
from scheduler_search.evaluation.batches import Part, make_batch
from scheduler_search.evaluation.metrics import metric_of
from scheduler_search.evaluation.models import LoadedModel, load_model
from scheduler_search.evaluation.prompts import make_prompt
from scheduler_search.evaluation.samples import Sample
from scheduler_search.evaluation.sources import read_splits
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from tests.evaluation.conftest import FULL, REDUCED, uniform_from_second

EXACT = metric_of("exact-match")


@pytest.fixture
def loaded(definition: Callable[..., StudyDefinition]) -> LoadedModel:
    return load_model(definition().model)


@pytest.fixture
def part(loaded: LoadedModel, definition: Callable[..., StudyDefinition]) -> Part:
    samples = read_splits(definition())["search"][:4]
    return Part(make_batch(samples, make_prompt("auto", loaded.processor, "tiny"), loaded.model))


def answers(loaded: LoadedModel, part: Part, reduction: Reduction, mode: scoring.Mode, tokens: int) -> tuple[str, ...]:
    found = scoring.run(loaded, part, reduction, scoring.Decoding(mode, tokens)).answers
    assert found is not None
    return found


def answering(*answers: str) -> Sample:
    return Sample("line 1", "where", answers, "digest", lambda: Image.new("RGB", (1, 1)))


@pytest.mark.parametrize(
    ("answers", "mode"),
    [
        (("red",), "prefill"),
        (("red", "b3"), "prefill"),
        (("red circle",), "generate"),
        (("red", "red circle"), "generate"),
        (("unheard",), "generate"),  # one id, but the unknown one
        (("</s>",), "generate"),  # one id whose text is nothing
    ],
)
def test_one_prefill_where_every_answer_is_one_token(loaded: LoadedModel, answers: Any, mode: str) -> None:
    samples = [answering("blue"), answering(*answers)]
    assert scoring.answer_mode(samples, loaded.processor.tokenizer, EXACT, 16) == mode


def test_one_new_token_is_one_prefill(loaded: LoadedModel) -> None:
    assert scoring.answer_mode([answering("red circle")], loaded.processor.tokenizer, EXACT, 1) == "prefill"


@pytest.mark.parametrize("reduction", [FULL, REDUCED])
def test_a_prefill_answers_like_a_generation_of_one_token(
    loaded: LoadedModel, part: Part, reduction: Reduction
) -> None:
    prefill = answers(loaded, part, reduction, "prefill", 16)
    assert prefill == answers(loaded, part, reduction, "generate", 1)
    longer = answers(loaded, part, reduction, "generate", 4)
    assert all(text.startswith(first) for text, first in zip(longer, prefill, strict=True))
    assert any(len(text.split()) > 1 for text in longer)


def test_generation_ends_at_the_end_token(loaded: LoadedModel, part: Part) -> None:
    first = answers(loaded, part, FULL, "generate", 4)
    word = next(text.split()[1] for text in first if len(text.split()) > 1)
    end = loaded.model.generation_config.eos_token_id
    loaded.model.generation_config.eos_token_id = [end, loaded.processor.tokenizer.convert_tokens_to_ids(word)]
    ended = answers(loaded, part, FULL, "generate", 4)
    for before, after in zip(first, ended, strict=True):
        words = before.split()
        assert after.split() == (words[: words.index(word) + 1] if word in words else words)


def test_the_reduction_is_applied(loaded: LoadedModel, part: Part) -> None:
    none_left = uniform_from_second(0.0)
    full, reduced = (answers(loaded, part, reduction, "generate", 6) for reduction in (FULL, none_left))
    assert full != reduced


def test_the_model_is_left_without_hooks(loaded: LoadedModel, part: Part) -> None:
    def hooks() -> int:
        modules = loaded.model.modules()
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)

    part.arguments(loaded.model, loaded.device)  # the library hooks the tower on its first call, and leaves it so
    before = hooks()
    answers(loaded, part, REDUCED, "prefill", 16)
    assert hooks() == before
