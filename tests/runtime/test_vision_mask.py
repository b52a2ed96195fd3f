"""Prompts that come as embeddings: the caller says which of them are vision tokens."""

import threading
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime import apply_reduction
from tests.runtime.tiny import IMAGE, batch, generate, reduction


def embedded(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the decoder would be given for these ids and images, as a caller with features of its own has it."""
    features = model.model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).pooler_output
    vision = inputs["input_ids"] == IMAGE
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).clone()
    embeddings[vision] = torch.cat(list(features))
    return {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]}, vision


@pytest.mark.parametrize(
    "applied", [reduction(), reduction((0.5, 0.5, 0.2), entry="pooling"), reduction(quota="per-image")]
)
@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_embeddings_are_as_good_as_ids(model_of, attention, applied):
    model, inputs = model_of("llama", attention), batch("varying")
    given, vision = embedded(model, inputs)
    with apply_reduction(model, applied) as handle:
        logits = model(**inputs).logits
        tokens, steps, _ = generate(model, inputs)
        report = handle.report()
        with handle.vision_mask(vision):
            assert torch.equal(model(**given).logits, logits)
            found_tokens, found_steps, _ = generate(model, given)
            without, _, _ = generate(model, given, use_cache=False)  # transformers uses one for embeddings all the same
        assert torch.equal(without, tokens)
        assert handle.report() == report
    assert torch.equal(found_tokens, tokens)
    assert torch.equal(found_steps, steps)


def test_beams_repeat_the_mask(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    given, vision = embedded(model, inputs)
    settings = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    with apply_reduction(model, reduction()) as handle:
        expected = model.generate(**inputs, **settings)[:, -5:]
        with handle.vision_mask(vision):
            assert torch.equal(model.generate(**given, **settings), expected)


def test_ids_beside_the_embeddings(model_of):
    """generate then returns the prompt too; it reads the embeddings."""
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    given, vision = embedded(model, inputs)
    with apply_reduction(model, reduction()) as handle:
        tokens, steps, _ = generate(model, inputs)
        with handle.vision_mask(vision):
            found_tokens, found_steps, _ = generate(model, given | {"input_ids": inputs["input_ids"]})
    assert torch.equal(found_tokens, tokens)
    assert torch.equal(found_steps, steps)


def test_a_second_turn_needs_no_mask(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    given, vision = embedded(model, inputs)
    new = torch.arange(10, 15).expand(3, 5)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1)

    def talk(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> torch.Tensor:
        cache = DynamicCache(config=model.config)
        model(**first, past_key_values=cache)
        logits: torch.Tensor = model(**second, attention_mask=mask, past_key_values=cache).logits
        return logits

    with apply_reduction(model, reduction()) as handle:
        expected = talk(inputs, {"input_ids": new})
        with handle.vision_mask(vision):
            assert torch.equal(talk(given, {"input_ids": new}), expected)
            assert torch.equal(talk(given, {"inputs_embeds": model.get_input_embeddings()(new)}), expected)


def test_the_mask_may_mark_padding(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    given, vision = embedded(model, inputs)
    with apply_reduction(model, reduction()) as handle:
        with handle.vision_mask(vision):
            expected = model(**given).logits
        with handle.vision_mask(vision | (inputs["attention_mask"] == 0)):
            assert torch.equal(model(**given).logits, expected)


def test_some_vision_tokens_can_be_kept_out_of_the_ranking(model_of):
    """What is not marked is text to the schedule, and text is never dropped."""
    model, inputs = model_of("llama", "sdpa"), batch("single")
    given, vision = embedded(model, inputs)
    vision[:, :13] = False
    with apply_reduction(model, reduction()) as handle, handle.vision_mask(vision):
        cache = model(**given).past_key_values
        assert handle.report().vision_tokens == (26,)
    assert cache.layers[-1].kept.position[0, :13].tolist() == list(range(13))


def refused(match: str) -> Any:
    return pytest.raises(UnsupportedError, match=match)


def test_what_is_refused(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    given, vision = embedded(model, inputs)
    with apply_reduction(model, reduction()) as handle:
        with refused(r"handle\.vision_mask"):
            model(**given)
        for wrong in (vision.long(), vision[0], vision.tolist()):
            with refused(r"must be a tensor \[batch, tokens\] of bool"), handle.vision_mask(wrong):
                pass  # pragma: no cover
        with handle.vision_mask(vision[:, 1:]), refused("must have the shape of the embeddings"):
            model(**given)
        with handle.vision_mask(vision[:1]), refused("must have the shape of the embeddings"):
            model(**given)  # only generate repeats prompts
        with handle.vision_mask(vision), refused("is for prompts that come as embeddings"):
            model(**inputs)
        with refused(r"handle\.vision_mask"):
            model(**given)  # nothing is left of the blocks
    handle = apply_reduction(model, reduction(rule="random"))
    with handle, handle.vision_mask(vision), refused("keyed by input_ids"):
        model(**given)


def test_a_mask_belongs_to_its_thread(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    given, vision = embedded(model, inputs)
    errors: list[Exception] = []

    def work() -> None:
        try:
            model(**given)
        except UnsupportedError as error:
            errors.append(error)

    with apply_reduction(model, reduction()) as handle, handle.vision_mask(vision):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        model(**given)
    assert len(errors) == 1


def test_blocks_nest(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    given, vision = embedded(model, inputs)
    single, single_vision = {name: part[:1] for name, part in given.items()}, vision[:1]
    with apply_reduction(model, reduction()) as handle, handle.vision_mask(vision):
        expected = model(**given).logits
        with handle.vision_mask(single_vision):
            model(**single)
        assert torch.equal(model(**given).logits, expected)
