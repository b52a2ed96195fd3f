"""Third law: a batch gives what its samples give alone."""

import pytest
import torch

from scheduler_search.runtime import apply_reduction
from tests.runtime.tiny import DECODERS, RATES, batch, generate, quick_first, reduction, single_of

RULES = {
    "attention-rank": reduction(),
    "all-rows": reduction(query_rows="all"),
    "fastv": reduction(rule="fastv"),
    "random": reduction(rule="random"),
    "random-entry": reduction((0.7, 0.7, 0.4, 0.1), rule="random", entry="random"),
    "pooling": reduction((0.61,) * 6, entry="pooling"),
    "pooling-then-rank": reduction((0.61, 0.61, 0.3), entry="pooling"),
    "none-at-entry": reduction((0.0,) * 6, entry="pooling"),
}
BY_ATTENTION = ("fastv-vision", "fastv-window", "importance-redundancy", "pyramid-drop")
RULES |= {name: reduction(rule=name) for name in BY_ATTENTION}


# Every decoder with the default rule and with one that changes hidden states; every rule with one decoder.
CASES = [pytest.param("llama", rule, marks=pytest.mark.slow if rule in BY_ATTENTION else ()) for rule in RULES] + [
    (decoder, rule) for decoder in DECODERS[1:] for rule in ("attention-rank", "pooling-then-rank")
]


@pytest.mark.parametrize(("decoder", "rule"), CASES)
@pytest.mark.parametrize("name", quick_first(["mixed", "padded"]))
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_a_batch_is_its_samples(model_of, decoder, attention, name, rule):
    model, inputs = model_of(decoder, attention), batch(name)
    with apply_reduction(model, RULES[rule]) as handle:
        tokens, logits, _ = generate(model, inputs, 3)
        counts = list(zip(*(layer.vision_tokens for layer in handle.report().layers), strict=True))
        for row in range(len(logits)):
            alone_tokens, alone, _ = generate(model, single_of(inputs, row), 3)
            torch.testing.assert_close(logits[row], alone[0], atol=1e-5, rtol=0)
            assert torch.equal(tokens[row], alone_tokens[0])
            assert [layer.vision_tokens for layer in handle.report().layers] == [(n,) for n in counts[row]]
    assert torch.isfinite(logits).all()


def test_right_padding_is_squeezed_out(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("padded")
    real = inputs["attention_mask"].bool()
    right = {"pixel_values": inputs["pixel_values"]}
    order = torch.argsort((~real).to(torch.int8), dim=1, stable=True)
    for name in ("input_ids", "attention_mask"):
        right[name] = inputs[name].gather(1, order)
    with apply_reduction(model, reduction(RATES)):
        torch.testing.assert_close(model(**right).logits[:, -4:], model(**inputs).logits[:, -4:], atol=1e-5, rtol=0)
