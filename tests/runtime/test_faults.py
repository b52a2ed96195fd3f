"""The laws can fail: each fault, put in on purpose, is noticed by the masking law."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from scheduler_search.runtime import layout, prefill
from scheduler_search.runtime.cache import LogicalDynamicLayer
from tests.runtime.test_law_masking import assert_equal_to_reference
from tests.runtime.tiny import batch, reduction

Patch = pytest.MonkeyPatch


def renumbered_positions(patch: Patch) -> None:
    """Kept tokens get the rotary positions 0..M-1 of the shortened sequence."""
    gather = layout.gather_tokens

    def wrong(values: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
        rotary = values.ndim == 3 and values.dtype == torch.float32 and values.shape[-1] == 16
        return gather(values, torch.arange(index.shape[1]).expand_as(index) if rotary else index, dim)

    patch.setattr(layout, "gather_tokens", wrong)


def positions_off_by_one(patch: Patch) -> None:
    """One token in the middle is rotated as its neighbour: the smallest wrong position there is."""
    gather = layout.gather_tokens

    def wrong(values: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
        if values.ndim == 3 and values.shape[-1] == 16:
            index = index.clone()
            index[:, index.shape[1] // 2] -= 1
        return gather(values, index, dim)

    patch.setattr(layout, "gather_tokens", wrong)


def leading_mask_columns(patch: Patch) -> None:
    """The first M rows and columns of the mask, instead of those of the kept tokens."""

    def wrong(mask: torch.Tensor, kept: layout.Kept, **_: Any) -> torch.Tensor:
        return mask[..., : kept.slots, : kept.slots]

    patch.setattr(prefill, "gather_mask", wrong)


def visible_fillers(patch: Patch) -> None:
    patch.setattr(layout, "_isolate_fillers", lambda mask, _valid: mask)


def leading_decode_columns(patch: Patch) -> None:
    """Decoding masks the first columns that fit, not those that the layer holds."""

    def wrong(mask: torch.Tensor, _kept: layout.Kept, new: int, _past: int, held: int, **_: Any) -> torch.Tensor:
        return mask[..., : held + new]

    patch.setattr(prefill, "continue_mask", wrong)


def an_earlier_layer_ranks(patch: Patch) -> None:
    """Scores of layer i - 2 rank in front of layer i."""
    take = prefill.Prefill.take_attention

    def wrong(self: prefill.Prefill, layer: int, inputs: Any) -> None:
        if self.plan.chooses_at(layer + 2) and self._attention is None:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(prefill.Prefill, "wants_attention", lambda *_: True)
                take(self, layer, inputs)
        elif self._attention is None:
            take(self, layer, inputs)

    patch.setattr(prefill.Prefill, "take_attention", wrong)


def one_query_row_missing(patch: Patch) -> None:
    rows = prefill.query_rows

    def wrong(prompt: Any, kind: Any) -> Any:
        marked = rows(prompt, kind).copy()
        marked[:, -1] = False
        return marked

    patch.setattr(prefill, "query_rows", wrong)


def physical_lengths(patch: Patch) -> None:
    """The cache tells how many tokens it holds, not how many there were."""
    patch.setattr(LogicalDynamicLayer, "get_seq_length", lambda self: self.keys.shape[-2] if self.is_initialized else 0)


FAULTS: list[Callable[[Patch], None]] = [
    renumbered_positions,
    positions_off_by_one,
    leading_mask_columns,
    visible_fillers,
    leading_decode_columns,
    an_earlier_layer_ranks,
    one_query_row_missing,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_masking_law_notices(model_of, monkeypatch, attention, fault):
    model, eager = model_of("llama", attention), model_of("llama", "eager")
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        assert_equal_to_reference(model, eager, batch("varying"), reduction((1.0, 0.9, 0.7, 0.5, 0.5, 0.2)))


def test_physical_lengths_are_noticed(model_of, monkeypatch):
    from tests.runtime.test_cache import test_a_manual_loop_without_positions

    physical_lengths(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        test_a_manual_loop_without_positions(model_of, "sdpa")
