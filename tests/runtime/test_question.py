"""Questions in CLIP's space: against the unmodified CLIP model, and under rules that compare patches with them."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from scheduler_search.errors import ModelError, UnsupportedError
from scheduler_search.reducers import Reducer, Tokens
from scheduler_search.rule import Reads, make_rule
from scheduler_search.runtime import (
    QuestionEncoder,
    Questions,
    apply_reduction,
    compute_features,
    load_question_encoder,
    views_wanted,
)
from scheduler_search.schedule.values import Reduction, VisionReduction
from tests.clip import CONTEXT, SPACE, build_clip, build_tokenizer, save_clip
from tests.runtime import towers
from tests.runtime.test_threads import together
from tests.runtime.tiny import LAYERS, TOKENS, batch, generate, single_of

QUESTIONS = ("color of circle", "how many red ring at b3", "where is blue")
RULES = ("cdpruner", "visiontrim")


@cache
def model_of(kind: str = "clip") -> Any:
    return towers.build(kind)


@cache
def clip() -> Any:
    return build_clip(model_of().base_model.vision_tower)


def encoder() -> QuestionEncoder:
    return QuestionEncoder(clip(), build_tokenizer())


def reduction(name: str = "cdpruner", source: str = "clip", tower: float | None = None) -> Reduction:
    rule = make_rule(name, {"text_features": source})
    vision = None if tower is None else VisionReduction((1.0, *(tower,) * 3), make_rule("tome"))
    return Reduction((0.25,) * LAYERS, make_rule("attention-rank"), rule, vision)


def applied(name: str = "cdpruner") -> Any:
    return apply_reduction(model_of(), reduction(name), question_encoder=encoder())


def ids_of(question: str) -> torch.Tensor:
    return build_tokenizer()(question, return_tensors="pt")["input_ids"]


def by_hand(question: str) -> torch.Tensor:
    return clip().text_projection(clip().text_model(input_ids=ids_of(question)).last_hidden_state)[0]


def patches_by_hand(pixels: torch.Tensor) -> torch.Tensor:
    states = clip().vision_model(pixel_values=pixels).last_hidden_state
    return clip().visual_projection(clip().vision_model.post_layernorm(states))[:, 1:]


class Seen:
    """What the entry rule of a pass is given. Drops the first tokens."""

    tokens: Tokens

    def __init__(self, patch: pytest.MonkeyPatch, reads: Reads) -> None:
        towers.use_reducer(patch, "entry", Reducer(make_rule("cdpruner"), reads, self._filter))

    def _filter(self, tokens: Tokens, _rule: object) -> torch.Tensor:
        self.tokens = tokens
        return -tokens.position.float()


# -- the encoder


def test_text_is_what_the_unmodified_clip_model_gives() -> None:
    text = encoder().encode(QUESTIONS)
    assert text.values.shape == (3, 8, SPACE)
    assert text.real.sum(1).tolist() == [5, 8, 5]
    for row, question in enumerate(QUESTIONS):
        torch.testing.assert_close(text.values[row, text.real[row]], by_hand(question), rtol=1e-4, atol=1e-5)
        assert not text.values[row, ~text.real[row]].any()
        alone = encoder().encode([question])
        torch.testing.assert_close(alone.values[0], text.values[row, text.real[row]], rtol=1e-4, atol=1e-5)


def test_the_end_token_is_what_clip_compares_images_with() -> None:
    text = encoder().encode(QUESTIONS[:1])
    pooled = clip().get_text_features(input_ids=ids_of(QUESTIONS[0])).pooler_output
    torch.testing.assert_close(text.values[:, -1], pooled, rtol=1e-4, atol=1e-5)


def test_long_questions_are_cut_at_the_context() -> None:
    words = " ".join(["red"] * 30)
    text = encoder().encode([words, "red"])
    assert text.values.shape[1] == CONTEXT
    torch.testing.assert_close(text.values[0], by_hand(" ".join(["red"] * (CONTEXT - 2))), rtol=1e-4, atol=1e-5)


def test_half_precision_gives_float32_text() -> None:
    half = QuestionEncoder(build_clip(model_of().base_model.vision_tower).to(torch.bfloat16), build_tokenizer())
    text = half.encode(QUESTIONS)
    assert text.values.dtype == torch.float32
    torch.testing.assert_close(text.values, encoder().encode(QUESTIONS).values, rtol=0.2, atol=0.2)


# -- loading


def test_a_saved_model_loads_as_it_is(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "clip", model_of().base_model.vision_tower)
    loaded = load_question_encoder(path)
    torch.testing.assert_close(loaded.encode(QUESTIONS).values, encoder().encode(QUESTIONS).values)
    states = torch.randn(2, 3, 32)
    torch.testing.assert_close(loaded.project(states), encoder().project(states))


def test_what_is_no_clip_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"text encoder must load.*safetensors"):
        load_question_encoder(tmp_path / "nothing", offline=True)
    model_of().config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="must be a CLIP model, but got type 'llava'"):
        load_question_encoder(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "clip", model_of().base_model.vision_tower)
    torch.save(clip().state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="text encoder must load"):
        load_question_encoder(path)


# -- what a rule is given


@pytest.mark.parametrize("name", RULES)
def test_rules_get_text_and_patches_of_the_unmodified_clip_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of(), batch("varying")
    (reads,) = views_wanted(model, reduction(name).entry_rule)
    seen = Seen(monkeypatch, reads)
    with applied(name) as handle, handle.questions(QUESTIONS):
        model(**inputs)
    tokens = seen.tokens
    assert tokens.text is not None
    assert tokens.features is not None
    assert (tokens.attention is not None) == (name == "visiontrim")
    expected = patches_by_hand(inputs["pixel_values"]).flatten(0, 1)
    torch.testing.assert_close(tokens.features[inputs["input_ids"] == 90], expected, rtol=1e-4, atol=1e-4)
    assert not tokens.features[inputs["input_ids"] != 90].any()
    for row, question in enumerate(QUESTIONS):
        text = tokens.text.values[row, tokens.text.real[row]]
        torch.testing.assert_close(text, by_hand(question), rtol=1e-4, atol=1e-5)


def test_behind_a_reduction_in_the_tower_patches_are_those_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of(), batch("varying")
    seen = Seen(monkeypatch, Reads(text=True, tower_layer=-1))
    rates = reduction("cdpruner", tower=0.5)
    with apply_reduction(model, rates, question_encoder=encoder()) as handle, handle.questions(QUESTIONS):
        model(**inputs)
        assert handle.report().layers[0].vision_tokens == (9, 18, 9)
    assert seen.tokens.features is not None
    assert seen.tokens.vision.sum(1).tolist() == [18, 36, 18]
    assert seen.tokens.features[seen.tokens.vision].any(dim=-1).all()


@pytest.mark.parametrize("name", RULES)
def test_samples_are_the_same_alone_and_questions_matter(name: str) -> None:
    model, inputs = model_of(), batch("mixed")
    with applied(name) as handle:
        with handle.questions(QUESTIONS):
            batched = model(**inputs).logits[:, -1]
        with handle.questions(QUESTIONS[::-1]):
            other = model(**inputs).logits[:, -1]
        for row, question in enumerate(QUESTIONS):
            with handle.questions([question]):
                alone = model(**single_of(inputs, row)).logits[:, -1]
            torch.testing.assert_close(alone[0], batched[row], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other[0], batched[0], atol=1e-3)
    with apply_reduction(model, reduction(name, "decoder")):
        assert not torch.allclose(model(**inputs).logits[0, -1], batched[0], atol=1e-3)


def test_beams_are_samples_of_one_question() -> None:
    model, inputs = model_of(), batch("padded")
    with applied() as handle, handle.questions(QUESTIONS):
        greedy = generate(model, inputs, 3)[0]
        beams = model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=2, num_return_sequences=1)
        for row, question in enumerate(QUESTIONS):
            alone = single_of(inputs, row)
            with handle.questions([question]):
                assert torch.equal(generate(model, alone, 3)[0][0], greedy[row])
                single = model.generate(**alone, max_new_tokens=3, do_sample=False, num_beams=2)
                assert torch.equal(single[0, -3:], beams[row, -3:])


def test_threads_say_their_own_questions() -> None:
    model, inputs = model_of(), batch("single")
    with applied() as handle:

        def answer(question: str) -> torch.Tensor:
            with handle.questions([question]):
                return model(**inputs).logits[:, -1]

        expected = {question: answer(question) for question in QUESTIONS[:2]}

        def ask(question: str) -> None:
            assert torch.equal(answer(question), expected[question])

        assert not together(*(partial(ask, question) for question in QUESTIONS[:2]))


@torch.inference_mode()
def test_what_was_computed_before_gives_the_same_bits() -> None:
    model, inputs = model_of(), batch("varying")
    pixels = inputs.pop("pixel_values")
    wanted, questions = views_wanted(model, reduction().entry_rule), Questions(encoder(), QUESTIONS)

    def compute() -> Any:
        return model.base_model.get_image_features(pixel_values=pixels, return_dict=True)

    output, views = compute_features(model, compute, None, wanted, questions)
    assert views is not None
    assert views.bytes >= 4 * TOKENS * SPACE * 4
    with applied() as handle:
        with handle.questions(QUESTIONS):
            expected = model(**inputs, pixel_values=pixels).logits
        with handle.tower_views(views.to(torch.device("cpu"))):
            assert torch.equal(model(**inputs, mm_encoder_outputs={"image": output}).logits, expected)


def test_later_turns_ask_for_no_question() -> None:
    model, inputs = model_of(), batch("single")
    with applied() as handle:
        with handle.questions(QUESTIONS[:1]):
            output = model(**inputs, use_cache=True)
        model(input_ids=torch.tensor([[5]]), past_key_values=output.past_key_values)
        model(input_ids=torch.tensor([[5, 6, 7]]))  # a prompt without images


# -- refusals


def test_without_an_encoder_a_rule_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"needs the text encoder of CLIP.*load_question_encoder"):
        apply_reduction(model_of(), reduction())
    with apply_reduction(model_of(), reduction(source="decoder"), question_encoder=encoder()):
        model_of()(**batch("single"))  # nobody asks it


def test_without_questions_a_prompt_is_refused() -> None:
    with applied() as handle:
        with pytest.raises(UnsupportedError, match=r"must be told the questions.*with handle.questions"):
            model_of()(**batch("padded"))
        with handle.questions(QUESTIONS[:2]), pytest.raises(UnsupportedError, match=r"each of the 3 samples.*2 quest"):
            model_of()(**batch("padded"))
        with handle.questions(QUESTIONS[:1]), pytest.raises(UnsupportedError, match="one question of each"):
            model_of()(**batch("padded"))  # not repeated: these are no beams
        with pytest.raises(UnsupportedError, match="several texts"), handle.questions("color of circle"):
            pass
        with handle.questions(QUESTIONS):
            model_of()(**batch("padded"))


def test_another_tower_is_refused() -> None:
    wider = QuestionEncoder(build_clip(model_of().base_model.vision_tower, hidden_size=48), build_tokenizer(), "wide")
    with pytest.raises(UnsupportedError, match=r'tower is that of wide, but got hidden_size 32, not 48.*"decoder"'):
        apply_reduction(model_of(), reduction(), question_encoder=wider)
    with pytest.raises(UnsupportedError, match="but got a tower of type 'siglip_vision_model'"):
        apply_reduction(model_of("siglip"), reduction(), question_encoder=encoder())


def test_features_without_questions_are_refused() -> None:
    wanted = views_wanted(model_of(), reduction().entry_rule)
    with pytest.raises(UnsupportedError, match="needs the text encoder"):
        compute_features(model_of(), lambda: None, None, wanted)


def test_in_the_decoder_nothing_changes() -> None:
    """Its stages stay on hidden states, also those of a rule that compares in CLIP's space at the entry."""
    model, inputs = model_of(), batch("padded")
    rule = make_rule("visiontrim", {"text_features": "clip"})
    both = Reduction((0.5, 0.5, *(0.25,) * (LAYERS - 2)), rule, rule)
    plain = Reduction(both.keep_rates, make_rule("visiontrim"), rule)
    found = []
    for one in (both, plain):
        with apply_reduction(model, one, question_encoder=encoder()) as handle, handle.questions(QUESTIONS):
            found.append(model(**inputs).logits[:, -1])
    assert torch.equal(*found)
