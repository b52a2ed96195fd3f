"""The laws can fail: each fault, put in on purpose, is noticed by the suite that holds the laws.

What must notice is the suite's own test of the law (``test_families``), run for one family and one shape of the batch,
not a check of its own. Every fault is the smallest of its kind: one position, one column, one row, one token.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scheduler_search.reducers import Reduced, attention, quota
from scheduler_search.runtime import layout, plan, prefill, prompts
from scheduler_search.runtime import rows as row_reading
from scheduler_search.runtime.cache import LogicalDynamicLayer
from scheduler_search.runtime.families import Family
from scheduler_search.runtime.tap import AttentionTap
from tests.runtime import test_cache, test_families, test_flash, test_generation, test_law_batch, test_quota
from tests.runtime.flash import emulated_kernels

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], None]


# -- positions


def renumbered_positions(patch: Patch) -> None:
    """Kept tokens get the rotary positions 0..M-1 of the shortened sequence."""
    gather = layout.gather_rotary

    def wrong(rotary: Any, index: torch.Tensor) -> Any:
        return gather(rotary, torch.arange(index.shape[1]).expand_as(index))

    patch.setattr(prefill, "gather_rotary", wrong)


def positions_off_by_one(patch: Patch) -> None:
    """One token in the middle is rotated as its neighbour: the smallest wrong position there is."""
    gather = layout.gather_rotary

    def wrong(rotary: Any, index: torch.Tensor) -> Any:
        index = index.clone()
        index[:, index.shape[1] // 2] -= 1
        return gather(rotary, index)

    patch.setattr(prefill, "gather_rotary", wrong)


def physical_lengths(patch: Patch) -> None:
    """The cache tells how many tokens it holds, not how many there were."""
    patch.setattr(LogicalDynamicLayer, "get_seq_length", lambda self: self.keys.shape[-2] if self.is_initialized else 0)


# -- masks


def leading_mask_columns(patch: Patch) -> None:
    """The first M rows and columns of the mask, instead of those of the kept tokens."""

    def wrong(mask: torch.Tensor, kept: layout.Kept, **_: Any) -> torch.Tensor:
        return mask[..., : kept.slots, : kept.slots]

    patch.setattr(prefill, "gather_mask", wrong)


def one_hidden_column(patch: Patch) -> None:
    """One kept token in the middle is hidden from the last row."""
    gather = layout.gather_mask

    def wrong(mask: torch.Tensor, kept: layout.Kept, **choice: Any) -> torch.Tensor:
        right = gather(mask, kept, **choice).clone()
        hidden = False if right.dtype == torch.bool else torch.finfo(right.dtype).min
        right[..., -1, kept.slots // 2] = hidden
        return right

    patch.setattr(prefill, "gather_mask", wrong)


def visible_fillers(patch: Patch) -> None:
    patch.setattr(layout, "_isolate_fillers", lambda mask, _valid: mask)


def leading_decode_columns(patch: Patch) -> None:
    """Decoding masks the first columns that fit, not those that the layer holds."""
    cut = layout.continue_mask

    def wrong(mask: torch.Tensor, *args: Any, **choice: Any) -> torch.Tensor:
        return mask[..., : cut(mask, *args, **choice).shape[-1]]

    patch.setattr(prefill, "continue_mask", wrong)


# -- ranking


def an_earlier_layer_ranks(patch: Patch) -> None:
    """Scores of layer i - 2 rank in front of layer i."""
    take = prefill.Prefill.take_attention

    def wrong(self: prefill.Prefill, layer: int, inputs: Any) -> None:
        if self.plan.chooses_at(layer + 2) and self._seen is None:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(prefill.Prefill, "wants_attention", lambda *_: True)
                take(self, layer, inputs)
        elif self._seen is None:
            take(self, layer, inputs)

    patch.setattr(prefill.Prefill, "take_attention", wrong)


def the_worst_are_kept(patch: Patch) -> None:
    patch.setattr(attention, "least_attended", lambda tokens, _rule: tokens.attention)


def one_query_row_missing(patch: Patch) -> None:
    _change_rows(
        patch, lambda _prompt, marked: np.where(np.arange(marked.shape[1]) == marked.shape[1] - 1, False, marked)
    )


def padding_asks(patch: Patch) -> None:
    """The rows of padding slots count among the query rows. Under eager they are the same for all keys: no fault."""
    _change_rows(patch, lambda prompt, marked: marked | ~prompt.real)


def _change_rows(patch: Patch, change: Callable[[Any, Any], Any]) -> None:
    rows = row_reading.query_rows
    patch.setattr(row_reading, "query_rows", lambda prompt, kind: change(prompt, rows(prompt, kind)))


def everybody_keeps_what_the_first_keeps(patch: Patch) -> None:
    """One choice for the whole batch, where the samples allow it."""
    reduce = prefill.reduce_tokens

    def wrong(reducer: Any, tokens: Any) -> Reduced:
        reduced = reduce(reducer, tokens)
        first = reduced.kept[:1] & tokens.vision
        fits = first.sum(1) == tokens.keep
        return replace(reduced, kept=torch.where(fits[:, None], first, reduced.kept))

    patch.setattr(prefill, "reduce_tokens", wrong)


# -- counts


def one_token_less(patch: Patch) -> None:
    _change_counts(
        patch, lambda rates, counts: [n - (n > 1 and rate < 1) for rate, n in zip(rates, counts, strict=True)]
    )


def one_token_more(patch: Patch) -> None:
    def wrong(rates: Any, counts: list[int]) -> list[int]:
        return [min(n + 1, counts[0]) if rate < 1 else n for rate, n in zip(rates, counts, strict=True)]

    _change_counts(patch, wrong)


def counts_rounded_down(patch: Patch) -> None:
    """0.9999 of 36 tokens is 35."""
    _change_counts(patch, lambda rates, counts: [int(rate * counts[0]) for rate in rates])


def _change_counts(patch: Patch, change: Callable[[Any, list[int]], list[int]]) -> None:
    right = plan.keep_counts
    patch.setattr(plan, "keep_counts", lambda rates, size: tuple(change(rates, list(right(rates, size)))))


def counts_of_the_largest_sample(patch: Patch) -> None:
    """The rates are taken of the largest N of the batch, not of each sample's."""
    of = plan.Plan.of.__func__  # type: ignore[attr-defined]

    def wrong(cls: Any, rates: Any, sizes: tuple[int, ...]) -> plan.Plan:
        right, most = of(cls, rates, sizes), of(cls, rates, (max(sizes),) * len(sizes))
        counts = [tuple(min(n, m) for n, m in zip(sizes, row, strict=True)) for row in most.counts]
        return plan.Plan(tuple(counts), right.vision_tokens)

    patch.setattr(plan.Plan, "of", classmethod(wrong))


# -- bits


def one_bit(patch: Patch) -> None:
    """The attention function gets its queries through a rounding that looks harmless."""
    call = AttentionTap.__call__

    def wrong(self: AttentionTap, module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return call(self, module, query * (1 + 2**-23), *args, **kwargs)

    patch.setattr(AttentionTap, "__call__", wrong)


# -- what notices

MASKING: dict[Fault, str] = {
    renumbered_positions: "varying",
    positions_off_by_one: "varying",
    leading_mask_columns: "varying",
    one_hidden_column: "varying",
    visible_fillers: "varying",
    leading_decode_columns: "varying",
    an_earlier_layer_ranks: "varying",
    the_worst_are_kept: "single",
    one_query_row_missing: "varying",
    padding_asks: "padded",
    everybody_keeps_what_the_first_keeps: "single-text",
    one_token_less: "varying",
    one_token_more: "varying",
    counts_of_the_largest_sample: "varying",
}
IDENTITY: list[Fault] = [counts_rounded_down, one_bit]
BATCH: list[Fault] = [visible_fillers, padding_asks, counts_of_the_largest_sample]


def named(faults: Any) -> Any:
    return pytest.mark.parametrize("fault", faults, ids=lambda fault: fault.__name__)


@pytest.fixture
def family_model(model_of) -> Callable[[str, str], Any]:
    """The models of ``test_families``, which are the same."""
    return lambda name, attention: model_of(name.removeprefix("llava-"), attention)


noticed = functools.partial(pytest.raises, AssertionError)


@pytest.mark.parametrize(
    ("fault", "attention"),
    [
        pytest.param(fault, attention, id=f"{fault.__name__}-{attention}", marks=() if quick else pytest.mark.slow)
        for attention, quick in (("sdpa", True), ("eager", False))
        for fault in MASKING
        if (fault, attention) != (padding_asks, "eager")
    ],
)
def test_the_masking_law_notices(family_model, monkeypatch, attention, fault):
    shape = MASKING[fault]
    if shape == "single-text":  # samples of equal layout
        inputs = functools.partial(_equal_layout, test_families.inputs_of)
        monkeypatch.setattr(test_families, "inputs_of", inputs)
        shape = "padded"
    fault(monkeypatch)
    with noticed():
        test_families.test_dropping_is_masking(family_model, "llava-llama", attention, shape)


def _equal_layout(inputs_of: Callable[[str, str], Any], name: str, shape: str) -> dict[str, torch.Tensor]:
    inputs = inputs_of(name, shape)
    return {
        key: torch.cat([part[:1], part[:1].flip(-1) if key == "pixel_values" else part[:1]])
        for key, part in inputs.items()
    }


@named(IDENTITY)
@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_the_identity_law_notices(family_model, monkeypatch, attention, fault):
    fault(monkeypatch)
    with noticed():
        test_families.test_keeping_all_is_bit_identical(family_model, "llava-llama", attention, "varying")


@named(BATCH)
@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_the_batch_law_notices(family_model, monkeypatch, attention, fault):
    fault(monkeypatch)
    with noticed():
        test_families.test_a_batch_is_its_samples(family_model, "llava-llama", attention, "varying")


def test_physical_lengths_are_noticed(model_of, monkeypatch):
    physical_lengths(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):  # positions are wrong, or masks do not fit
        test_cache.test_a_manual_loop_without_positions(model_of, "sdpa")


def test_a_random_key_with_padding_in_it_is_noticed(model_of, monkeypatch):
    monkeypatch.setattr(prompts.Prompt, "asking", property(lambda self: np.ones_like(self.real)))
    with noticed():
        test_law_batch.test_a_batch_is_its_samples(model_of, "llama", "sdpa", "padded", "random")


def test_candidates_that_rank_are_noticed(model_of, monkeypatch):
    """A pass without a cache, or with candidates, takes all of its text for the prompt's."""
    monkeypatch.setattr(prompts.Asked, "slots", property(lambda _self: None, lambda *_: None), raising=False)
    with noticed():
        test_generation.test_without_a_cache(model_of, "sdpa", test_generation.RULES["instruction"])


@pytest.mark.parametrize("rule", ["attention-rank", "random"])
def test_images_taken_for_one_are_noticed(model_of, monkeypatch, rule):
    monkeypatch.setattr(Family, "images", lambda _self, _config, vision: np.where(vision, 0, -1))
    monkeypatch.setattr("scheduler_search.runtime.families.llava.Llava.images", Family.images)
    with noticed():
        test_quota.test_dropping_is_masking(model_of, "sdpa", "three", rule)


def test_shares_that_ignore_sizes_are_noticed(monkeypatch):
    monkeypatch.setattr(quota, "seat_places", lambda sizes: np.argsort(np.arange(sum(sizes)), kind="stable"))
    from tests.reducers import test_quota as shares

    with noticed():
        shares.test_the_shares_of_many_tokens()


def test_visible_fillers_are_noticed_under_flash_attention(model_of, monkeypatch):
    """Without the padding mask the kernel sees fillers."""
    cut = prefill.Prefill._cut

    def wrong(self: prefill.Prefill, arguments: Any, kept: layout.Kept) -> dict[str, Any]:
        return cut(self, arguments, kept) | {"attention_mask": None}

    monkeypatch.setattr(prefill.Prefill, "_cut", wrong)
    with emulated_kernels(), noticed():
        test_flash.test_dropping_is_masking(model_of, "varying", "attention-rank")


def test_positions_with_gaps_are_noticed_under_flash_attention(monkeypatch):
    cut = prefill.Prefill._cut

    def wrong(self: prefill.Prefill, arguments: Any, kept: layout.Kept) -> dict[str, Any]:
        return cut(self, arguments, kept) | {"position_ids": kept.position}

    monkeypatch.setattr(prefill.Prefill, "_cut", wrong)
    with emulated_kernels() as calls, noticed():
        test_flash.test_gathered_positions_are_no_packed_sequences(calls)
