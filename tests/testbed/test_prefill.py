from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from scheduler_search.schedule.counts import keep_counts
from scheduler_search.schedule.families import sigmoid, uniform
from scheduler_search.testbed.generator import Question, generate
from scheduler_search.testbed.model import VISION_TOKENS, build_model, pixel_values
from scheduler_search.testbed.prefill import Prefill, State
from scheduler_search.testbed.vocabulary import BOS, IMAGE, WORD_IDS

LAYERS = 5


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return build_model(LAYERS, seed=3).eval()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return generate("train", 12, 5)


@pytest.fixture(scope="module")
def prefill(model: LlavaForConditionalGeneration, questions: list[Question]) -> Prefill:
    return Prefill(model, questions)


def _ids(question: Question) -> torch.Tensor:
    words = [WORD_IDS[word] for word in question.question.split()]
    return torch.tensor([[WORD_IDS[BOS], *[WORD_IDS[IMAGE]] * VISION_TOKENS, *words]])


def test_without_reduction_it_is_the_model(
    model: LlavaForConditionalGeneration, questions: list[Question], prefill: Prefill
) -> None:
    model.set_attn_implementation("eager")
    correct = prefill.run((VISION_TOKENS,) * LAYERS)
    scores = prefill.scores()
    order = [place for group in prefill.groups for place in group.places]
    for place, question in enumerate(questions):
        with torch.no_grad():
            pixels = pixel_values([np.asarray(question.image)])
            output = model(input_ids=_ids(question), pixel_values=pixels, output_attentions=True)
        assert correct[place] == float(output.logits[0, -1].argmax() == WORD_IDS[question.answer])
        rows = output.attentions[2][0, :, 1 + VISION_TOKENS :, 1 : 1 + VISION_TOKENS]
        assert torch.allclose(scores[2, order.index(place)], rows.mean((0, 1)), atol=1e-5)


def test_dropping_is_masking(model: LlavaForConditionalGeneration, questions: list[Question], prefill: Prefill) -> None:
    """The kept tokens of layer 2, chosen by hand, in an unmodified model in which the others are masked there."""
    model.set_attn_implementation("eager")
    counts = (VISION_TOKENS, 20, 20, 20, 20)
    group, unreduced = prefill.groups[0], prefill._unreduced[0]
    with torch.no_grad():
        final = prefill._from_first_reduction(unreduced, counts, None)
        for row, place in enumerate(group.places):
            expected = _masked(model, questions[place], unreduced[1], row, 20)
            assert torch.allclose(final.hidden[row, -1], expected, atol=1e-4)


def _masked(
    model: LlavaForConditionalGeneration, question: Question, before: State, row: int, count: int
) -> torch.Tensor:
    decoder = model.model.language_model
    assert before.scores is not None
    length = _ids(question).shape[1]
    causal = torch.full((length, length), float("-inf")).triu(1)
    dropped = before.scores[row].argsort(descending=True)[count:] + 1
    reduced = causal.clone()
    reduced[:, dropped] = float("-inf")
    reduced[dropped, dropped] = 0  # a row must look somewhere; nobody looks at these rows
    hidden = before.hidden[row : row + 1]
    positions = torch.arange(length)[None]
    rotary = decoder.rotary_emb(hidden, position_ids=positions)
    for layer in decoder.layers[1:]:
        hidden = layer(hidden, attention_mask=reduced[None, None], position_embeddings=rotary, position_ids=positions)
    return hidden[0, -1]


def test_random_dropping_depends_on_its_seed_alone(prefill: Prefill) -> None:
    counts = keep_counts(uniform(LAYERS, 0.25, 2), VISION_TOKENS)
    states = [
        prefill._from_first_reduction(prefill._unreduced[0], counts, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(states[0].positions, states[1].positions)
    assert not torch.equal(states[0].positions, states[2].positions)


def test_every_layer_holds_the_tokens_of_the_layer_before(prefill: Prefill) -> None:
    counts = keep_counts(sigmoid(LAYERS, 0.3, 1.0, 2), VISION_TOKENS)
    for generator in (None, torch.Generator().manual_seed(0)):
        final = prefill._from_first_reduction(prefill._unreduced[0], counts, generator)
        assert final.vision == counts[-1]
        assert (final.positions.diff(dim=1) > 0).all()
        words = final.positions.shape[1] - 1 - final.vision
        assert (final.positions[:, -words:] > VISION_TOKENS).all()


def test_no_vision_tokens_at_all_is_possible(prefill: Prefill) -> None:
    assert len(prefill.run((0,) * LAYERS)) == 12
