"""bfloat16: the laws within its rounding.

The runtime scores in float32 from bfloat16 queries and keys; the eager reference rounds its attention to bfloat16, and
under sdpa the states of both differ by rounding already. So the law is held in two halves: masking what was dropped
gives the same logits, and what was kept is what the reference would keep, but for tokens whose scores differ from the
last kept one by less than rounding can move them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from scheduler_search.runtime import apply_reduction
from tests.runtime.reference_mask import MaskedReference
from tests.runtime.test_families import kept_sets
from tests.runtime.test_faults import an_earlier_layer_ranks, one_hidden_column, one_query_row_missing
from tests.runtime.tiny import RATES, batch, build, generate, quick_first, reduction, single_of

EPSILON = 2.0**-8  # relative spacing of bfloat16
TOLERANCE = 8 * EPSILON  # of the largest logit; seen: 4.9, and 4.2 between sdpa and eager without a schedule
TIE = (
    8 * EPSILON
)  # of a score, which is a mean over heads and rows of what is rounded once and computed from rounded states
Run = Callable[[Any], Any]


def rough(attention: str) -> Any:
    return build(attention=attention).to(torch.bfloat16)


def rough_batch(name: str) -> dict[str, torch.Tensor]:
    inputs = batch(name)
    return inputs | {"pixel_values": inputs["pixel_values"].to(torch.bfloat16)}


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    found, expected = found.float(), expected.float()
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


class Follower(MaskedReference):
    """Masks what the runtime dropped, and notes how much worse than a dropped token a kept one was."""

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor], kept: list[list[list[int]]]) -> None:
        super().__init__(model, RATES, inputs)
        self.layers_of = [
            {slot: sum(slot in layer[sample] for layer in kept) for slot in range(self.ids.shape[1])}
            for sample in range(len(self.ids))
        ]
        self.worst = 0.0
        self.choices = 0

    def _ranked(self, sample: int, left: list[int], hidden: torch.Tensor) -> list[int]:  # noqa: ARG002
        assert self.weights is not None
        followed = sorted(left, key=lambda slot: -self.layers_of[sample][slot])
        keep = sum(self.layers_of[sample][slot] > len(self.dead_at) for slot in left)
        score = self.weights[sample][:, self._query_rows(sample)].float().mean((0, 1))
        if 0 < keep < len(left):
            least, most = score[followed[:keep]].min(), score[followed[keep:]].max()
            self.worst = max(self.worst, float((most - least) / most))
            self.choices += 1
        return followed


def assert_masking(attention: str, name: str) -> None:
    model, eager, inputs = rough(attention), rough("eager"), rough_batch(name)
    real = inputs["attention_mask"].bool()
    with apply_reduction(model, reduction()):
        output = model(**inputs)
        tokens, steps, cache = generate(model, inputs)
    kept = kept_sets(output.past_key_values, real)
    with Follower(eager, inputs, kept) as reference:
        assert_close(output.logits[:, -4:], eager(**inputs).logits[:, -4:])
    assert reference.worst < TIE
    assert reference.choices >= 3 * len(real) * 0.9  # a choice in front of three layers
    # generate counts positions from the first real token: rotations are rounded otherwise, and ties fall otherwise.
    with Follower(eager, inputs, kept_sets(cache, real)):
        _, expected, _ = generate(eager, inputs, past_key_values=DynamicCache())
    for found, row in zip(steps, expected, strict=True):
        for step, other in zip(found, row, strict=True):
            assert_close(step, other)
            if step.argmax() != other.argmax():
                break  # a tie within the rounding: from here on the answers differ
    assert output.logits.dtype == torch.bfloat16
    assert tokens.shape == (len(real), 6)


@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_keeping_all_is_bit_identical(attention):
    model, inputs = rough(attention), rough_batch("varying")
    base = generate(model, inputs, 4)
    with apply_reduction(model, reduction((1.0, 1.0, 0.995))):
        found = generate(model, inputs, 4)
    assert torch.equal(found[1], base[1])


@pytest.mark.parametrize("name", quick_first(["varying", "padded"]))
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_dropping_is_masking(attention, name):
    assert_masking(attention, name)


@pytest.mark.parametrize("name", quick_first(["varying", "padded"]))
def test_a_batch_is_its_samples(name):
    """With a rule that reads no attention: then no rounding can change the choice."""
    model, inputs = rough("sdpa"), rough_batch(name)
    with apply_reduction(model, reduction(rule="random")) as handle:
        output = model(**inputs)
        counts = [layer.vision_tokens for layer in handle.report().layers]
        kept = kept_sets(output.past_key_values, inputs["attention_mask"].bool())
        for row in range(len(counts[0])):
            sample = single_of(inputs, row)
            alone = model(**sample)
            assert_close(output.logits[row, -1], alone.logits[0, -1])
            assert [layer.vision_tokens for layer in handle.report().layers] == [(n[row],) for n in counts]
            padding = inputs["input_ids"].shape[1] - sample["input_ids"].shape[1]
            its = kept_sets(alone.past_key_values, sample["attention_mask"].bool())
            assert [[slot + padding for slot in layer[0]] for layer in its] == [layer[row] for layer in kept]


def test_the_cache_and_its_report():
    model, inputs = rough("sdpa"), rough_batch("varying")
    with apply_reduction(model, reduction()) as handle:
        cache = model(**inputs).past_key_values
        report = handle.report()
    assert {layer.keys.dtype for layer in cache.layers} == {torch.bfloat16}
    assert [layer.kv_bytes for layer in report.layers] == [layer.keys.nbytes * 2 for layer in cache.layers]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [an_earlier_layer_ranks, one_hidden_column, one_query_row_missing])
def test_the_tolerances_tell_faults(monkeypatch, fault):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        assert_masking("sdpa", "varying")
