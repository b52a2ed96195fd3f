"""Ways to generate that differ in speed must not differ in what they keep, nor in their tokens.

Passes without a cache, and the first pass of assisted decoding, have generated text or candidates in them: ranking by
their rows, or by another key, would drop other tokens than a plain prefill.
"""

from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers.attention import query_rows
from scheduler_search.reducers.load import load_reducer
from scheduler_search.runtime import apply_reduction
from scheduler_search.runtime.families import family_of
from scheduler_search.runtime.prompts import Asked, PromptReader
from tests.runtime.reference_mask import MaskedReference
from tests.runtime.tiny import IMAGE, PAD, RATES, TOKENS, VOCABULARY, batch, generate, quick_first, reduction

RULES = {
    "instruction": reduction(),
    "all-rows": reduction(query_rows="all"),
    "last-row": reduction(rule="fastv"),
    "random": reduction((0.7, 0.7, 0.4, 0.1), rule="random", entry="random"),
    "pooling": reduction((0.61, 0.61, 0.3), entry="pooling"),
}
every_rule = pytest.mark.parametrize(
    "applied",
    [
        pytest.param(rule, id=name, marks=() if name == "instruction" else pytest.mark.slow)
        for name, rule in RULES.items()
    ],
)


def one(name: str = "equal") -> dict[str, torch.Tensor]:
    return {key: value[:1] for key, value in batch(name).items()}


def assistant() -> Any:
    """A text model with the vocabulary of the others, which guesses wrong often enough and right sometimes."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


class Guessing:
    """Counts the passes of a model, and the tokens they had behind the prompt in a pass without a filled cache."""

    def __init__(self, model: Any) -> None:
        self.lengths: list[int] = []
        self.hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        self.lengths.append(kwargs["input_ids"].shape[1])


@every_rule
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_without_a_cache(model_of, attention, applied):
    """Every step reads prompt and answer anew; what is dropped, and every logit, is as with a cache."""
    model, inputs = model_of("llama", attention), batch("varying")
    with apply_reduction(model, applied):
        tokens, logits, _ = generate(model, inputs, 6)
        again, found, cache = generate(model, inputs, 6, use_cache=False)
    assert cache is None
    assert torch.equal(again, tokens)
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=0)


def test_a_generated_image_token_is_text(model_of):
    """A model may generate the id that stands for vision tokens; nothing is counted or ranked by it."""
    model, ids = model_of("llama", "sdpa"), batch("single")["input_ids"]
    rules = (load_reducer(reduction(quota="per-image").rule, "decoder"),)
    reader = PromptReader(family_of(model), model.config, rules)
    longer = torch.cat([ids, torch.full((1, 2), IMAGE), torch.full((1, 1), 7)], dim=1)
    prompt = reader.read({"input_ids": longer}, Asked(generates=True, slots=ids.shape[1]))
    assert prompt.vision_tokens == (TOKENS,)
    assert prompt.text_tokens == (longer.shape[1] - TOKENS,)
    assert prompt.given == ids.shape[1]
    assert query_rows(prompt, "instruction")[0].nonzero()[0].tolist() == list(range(39, 46))
    assert prompt.images.max() == 0


@every_rule
def test_prompt_lookup(model_of, applied):
    """Tokens of the prompt are guessed; most guesses are wrong and are cropped off the cache."""
    model, inputs = model_of("llama", "sdpa"), one()
    inputs["input_ids"][0, -2:] = inputs["input_ids"][0, -7:-5]  # the end occurred before: there is a guess at once
    with apply_reduction(model, applied):
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        passes = Guessing(model)
        found = model.generate(**inputs, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
        passes.hook.remove()
    assert torch.equal(found, expected)
    assert passes.lengths[0] > inputs["input_ids"].shape[1]  # candidates were in the prefill
    assert len(passes.lengths) <= 12


@every_rule
@pytest.mark.parametrize("helper", quick_first(["text", "family"]))
def test_assisted_decoding(model_of, applied, helper):
    model, inputs = model_of("llama", "sdpa"), one()
    guesser = assistant() if helper == "text" else model_of("llama", "eager")
    with apply_reduction(model, applied):
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        passes = Guessing(model)
        found = model.generate(**inputs, max_new_tokens=12, do_sample=False, assistant_model=guesser)
        passes.hook.remove()
    assert torch.equal(found, expected)
    assert passes.lengths[0] > inputs["input_ids"].shape[1]


def test_assisted_decoding_with_a_sliding_window(model_of):
    model, inputs = model_of("mistral", "sdpa"), one()
    with apply_reduction(model, reduction()):
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        assert torch.equal(
            model.generate(**inputs, max_new_tokens=12, do_sample=False, assistant_model=assistant()), expected
        )


def test_a_hooked_assistant_is_refused(model_of):
    """Its cache would be cropped into its prompt."""
    model, inputs = model_of("llama", "sdpa"), one()
    with apply_reduction(model, reduction()), pytest.raises(UnsupportedError, match=r"assistant.*without a schedule"):
        model.generate(**inputs, max_new_tokens=2, assistant_model=model)


def test_a_crop_of_candidates_shortens_what_is_kept(model_of):
    """Candidates of the prefill can be taken back, tokens of the prompt cannot."""
    model, inputs = model_of("llama", "sdpa"), one()
    with apply_reduction(model, reduction()):
        cache = model(**inputs, past_key_values=DynamicCache(config=model.config)).past_key_values
        expected = [None if layer.kept is None else layer.kept.position for layer in cache.layers]
        longer = {name: torch.cat([inputs[name], inputs[name][:, -2:]], 1) for name in ("input_ids", "attention_mask")}
        handle = model.generate.handle
        handle._pass.asked = Asked(generates=True, slots=inputs["input_ids"].shape[1])
        cache = model(**{**inputs, **longer}, past_key_values=DynamicCache(config=model.config)).past_key_values
        handle._pass.asked = Asked()
    lengths = [layer.keys.shape[-2] for layer in cache.layers]
    cache.crop(-2)
    assert [layer.keys.shape[-2] for layer in cache.layers] == [length - 2 for length in lengths]
    for layer, position in zip(cache.layers, expected, strict=True):
        assert (layer.kept is None) == (position is None)
        assert position is None or torch.equal(layer.kept.position, position)
        assert layer.get_seq_length() == inputs["input_ids"].shape[1]
    with pytest.raises(UnsupportedError, match="cropped into its reduced prompt"):
        cache.crop(-1)


@pytest.mark.parametrize(
    "name", [pytest.param("padded", marks=pytest.mark.slow), pytest.param("mixed", marks=pytest.mark.slow), "varying"]
)
def test_three_beams(model_of, name):
    model, eager, inputs = model_of("llama", "sdpa"), model_of("llama", "eager"), batch(name)
    settings = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "num_return_sequences": 3}
    with apply_reduction(model, reduction()):
        found = model.generate(**inputs, **settings)
    beams = {key: inputs[key].repeat_interleave(3, 0) for key in ("input_ids", "attention_mask")}
    with MaskedReference(eager, RATES, beams):
        expected = eager.generate(**inputs, **settings, past_key_values=DynamicCache())
    assert torch.equal(found, expected)


def test_three_beams_without_a_cache(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    settings = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    with apply_reduction(model, reduction()):
        assert torch.equal(model.generate(**inputs, **settings, use_cache=False), model.generate(**inputs, **settings))


@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_two_turns_of_generate(model_of, attention):
    """The second turn's ids hold the first's; generate reads the new ones on the cache of the others."""
    model, eager, inputs = model_of("llama", attention), model_of("llama", "eager"), batch("varying")
    question = torch.arange(10, 15).expand(3, 5)

    def talk(model: Any, cache: Any) -> tuple[torch.Tensor, torch.Tensor]:
        settings: dict[str, Any] = {"do_sample": False, "past_key_values": cache}
        answer = model.generate(**inputs, **settings, max_new_tokens=4)
        ids = torch.cat([answer, question], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 9, dtype=torch.long)], 1)
        settings |= {"output_logits": True, "return_dict_in_generate": True}
        output = model.generate(input_ids=ids, attention_mask=mask, **settings, max_new_tokens=4)
        return output.sequences, torch.stack(output.logits, 1)

    with apply_reduction(model, reduction()):
        found = talk(model, DynamicCache(config=model.config))
    with MaskedReference(eager, RATES, inputs):
        expected = talk(eager, DynamicCache())
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=0)


def test_a_nested_generate_forgets_nothing(model_of):
    """The length of the outer prompt is there again after an inner generate, also after one that fails."""
    model, inputs = model_of("llama", "sdpa"), batch("equal")
    with apply_reduction(model, reduction()) as handle:
        before = handle._pass.asked
        with pytest.raises(UnsupportedError):
            model.generate(
                **inputs,
                max_new_tokens=2,
                past_key_values=transformers.StaticCache(config=model.config.text_config, max_cache_len=90),
            )
        assert handle._pass.asked is before
