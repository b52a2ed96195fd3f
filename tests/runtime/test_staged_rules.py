"""Rules of the decoder that merge, or read keys, raters or every row: the runtime gives them what they read."""

from typing import Any

import numpy as np
import pytest
import torch

from scheduler_search.reducers import Prompt
from scheduler_search.rule import make_rule
from scheduler_search.runtime import apply_reduction
from scheduler_search.runtime.rows import RowReader
from scheduler_search.schedule.values import Reduction, VisionReduction
from tests.runtime import towers
from tests.runtime.reference_staged import StagedReference, StagedTower
from tests.runtime.test_prefix import check_stages
from tests.runtime.test_tower import survivors
from tests.runtime.tiny import IMAGE, RATES, batch, build, generate, quick_first, reduction, single_of

TOLERANCE = 1e-5
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "sparsevlm": ("sparsevlm", {"recycled": 0.5, "tokens_per_cluster": 3}),
    "dart": ("dart", {"image_pivots": 2}),
    "ficoco-l": ("ficoco-l", {"epsilon": 0.7}),
    "sparsevlm-prunes": ("sparsevlm", {"recycled": 0.0}),
    "sparsevlm-sums": ("sparsevlm", {"recycled": 0.9, "tokens_per_cluster": 2, "reconstruction": "sum"}),
}
MERGING = {"sparsevlm", "sparsevlm-sums", "ficoco-l"}


@pytest.mark.parametrize("name", quick_first(["varying", "padded", "mixed"]))
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
@pytest.mark.parametrize("rule", RULES)
def test_as_the_masked_model(model_of, rule, attention, name):
    model, eager, inputs = model_of("llama", attention), model_of("llama", "eager"), batch(name)
    kind, settings = RULES[rule]
    applied = reduction(RATES, kind, **settings)
    with apply_reduction(model, applied):
        tokens, logits, _ = generate(model, inputs, 3)
    with StagedReference(eager, applied.keep_rates, inputs, applied.rule) as reference:
        output = eager.generate(
            **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    torch.testing.assert_close(logits, torch.stack(output.logits, dim=1), atol=TOLERANCE, rtol=0)
    assert torch.equal(tokens, output.sequences[:, -3:])
    assert (reference.most_merged > 1e-3) == (rule in MERGING)


@pytest.mark.parametrize("rule", quick_first(["dart", "sparsevlm", "ficoco-l"]))
def test_padding_does_not_matter_without_position_ids(model_of, rule):
    """Then the rotary positions of a sample begin behind its padding."""
    model, inputs = model_of("llama"), batch("mixed")
    kind, settings = RULES[rule]
    with apply_reduction(model, reduction(RATES, kind, **settings)):
        together = model(**inputs).logits[:, -4:]
        for row, logits in enumerate(together):
            torch.testing.assert_close(model(**single_of(inputs, row)).logits[0, -4:], logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("use_cache", quick_first([False, True]))
@pytest.mark.parametrize("rule", quick_first(["sparsevlm", "dart", "ficoco-l"]))
def test_a_prefix_gives_the_whole_pass(model_of, rule, use_cache):
    kind, settings = RULES[rule]
    check_stages(model_of("llama"), batch("varying"), kind, settings, use_cache)


def test_an_entry_rule_does_not_change_the_raters(model_of, monkeypatch):
    """They are chosen in front of it, so that a pass from a prefix, which never sees it, has the same."""
    chosen = []
    rate = RowReader.rate

    def watching(reader: RowReader, hidden: torch.Tensor) -> None:
        rate(reader, hidden)
        assert reader._text is not None
        chosen.append(reader._text.weights)

    monkeypatch.setattr(RowReader, "rate", watching)
    model, inputs = model_of("llama"), batch("padded")
    for entry in (None, "pooling"):
        with apply_reduction(model, reduction((0.5, 0.5, 0.2) if entry else (1.0, 1.0, 0.2), "sparsevlm", entry)):
            model(**inputs)
    assert torch.equal(*chosen)
    assert ((chosen[0] > 0).sum(dim=1) < torch.tensor([7, 4, 5])).any(), "not everybody is a rater"


def test_what_the_tower_dropped_rates_nobody():
    ids = np.array([[5, IMAGE, IMAGE, IMAGE, 6, 7, 8]])
    hidden = torch.randn(1, 7, 8, generator=torch.Generator().manual_seed(0))
    without = torch.cat([hidden[:, :2], hidden[:, 3:]], dim=1)
    hidden[0, 2] = float("nan")
    weights = []
    for one, states in ((ids, hidden), (np.delete(ids, 2, axis=1), without)):
        reader = RowReader(Prompt(one, np.ones(one.shape, bool), one == IMAGE))
        reader.rate(states)
        slots, found = reader.at("raters", None, None, (3,), states.device)
        assert slots.tolist() == [[one.shape[1] - 3, one.shape[1] - 2, one.shape[1] - 1]]
        weights.append(found)
    torch.testing.assert_close(*weights)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["qwen2", "mistral"])
def test_other_decoders(decoder):
    model, eager, inputs = build(decoder), build(decoder, "eager"), batch("varying")
    for kind, settings in RULES.values():
        applied = reduction(RATES, kind, **settings)
        with apply_reduction(model, applied):
            logits = model(**inputs).logits[:, -4:]
        with StagedReference(eager, applied.keep_rates, inputs, applied.rule):
            expected = eager(**inputs, use_cache=False).logits[:, -4:]
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
@pytest.mark.parametrize(
    ("rule", "kind", "decoder"),
    [
        ("ficoco-v", "clip", (0.5,) * 6),
        ("ficoco-v", "siglip", (0.5,) * 6),
        ("ficoco-vl", "clip", (0.5, 0.5, 0.4, 0.3, 0.3, 0.1)),
    ],
)
def test_in_the_tower(rule, kind, decoder, attention):
    """With a class token and without, and in both places."""
    made, tower, inputs = make_rule(rule, {"epsilon": 0.8}), (1.0, 0.8, 0.5, 0.5), batch("varying")
    inner = make_rule("attention-rank") if rule == "ficoco-v" else made
    with apply_reduction(
        towers.build(kind, attention), Reduction(decoder, inner, None, VisionReduction(tower, made))
    ) as handle:
        logits = handle.model(**inputs).logits[:, -3:]
    eager = towers.build(kind, "eager")
    with StagedTower(eager, kind, tower, made) as reference:
        entry = survivors(reference, inputs)
        with StagedReference(eager, decoder, inputs, inner, entry):
            expected = eager(**inputs, use_cache=False).logits[:, -3:]
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
