"""Where tokens lie: gathering, left-padded compaction, and attention masks over gathered tokens. Pure functions.

Shapes: B samples, S slots before and M slots after a compaction, P slots of the unreduced prompt. Samples that keep
fewer tokens than the longest get *filler* slots in front. A filler sees only itself and is seen by nobody, so that its
attention is finite in every kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Kept:
    """The prompt tokens that a layer holds.

    Args:
        position: [B, M] int64, slot of each token in the unreduced prompt; ascending in every row.
        valid: [B, M] bool, False for fillers; None where there are none.
        prompt: P.
        candidates: how many of the P slots, at the end, are not the prompt's but candidates of assisted decoding: text
            of all samples, which may be taken back.
    """

    position: torch.Tensor
    valid: torch.Tensor | None
    prompt: int
    candidates: int = 0

    @property
    def slots(self) -> int:
        """M."""
        return self.position.shape[1]

    def select(self, samples: torch.Tensor) -> Kept:
        """The same for the samples with these indices, e.g. after a beam search step."""
        rows = samples.to(self.position.device)
        valid = None if self.valid is None else self.valid.index_select(0, rows)
        return replace(self, position=self.position.index_select(0, rows), valid=valid)

    def repeat(self, times: int) -> Kept:
        """The same with every sample repeated."""
        valid = None if self.valid is None else self.valid.repeat_interleave(times, dim=0)
        return replace(self, position=self.position.repeat_interleave(times, dim=0), valid=valid)

    def without_last(self, candidates: int) -> Kept:
        """The same without its last candidates."""
        valid = None if self.valid is None else self.valid[:, :-candidates]
        return Kept(self.position[:, :-candidates], valid, self.prompt - candidates, self.candidates - candidates)


def to_device(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """The tensor on a device; itself if it is there."""
    return None if tensor is None else tensor.to(device)


def gather_tokens(values: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """``values`` [B or 1, ...] at ``index`` [B, M] along ``dim``: [B, ..., M, ...], on the device of ``values``."""
    samples, slots = index.shape
    index = index.to(values.device)
    if dim == 1:
        return _gather_rows(values, index)
    if values.shape[0] != samples:
        values = values.expand(samples, *values.shape[1:])
    view, target = [1] * values.ndim, list(values.shape)
    view[0], view[dim] = samples, slots
    target[dim] = slots
    return values.gather(dim, index.view(view).expand(target))


def _gather_rows(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``gather_tokens`` along dim 1, as a copy of whole rows: several times as fast as an element-wise gather."""
    samples, length = values.shape[:2]
    if samples > 1:
        index = index + torch.arange(0, samples * length, length, device=index.device)[:, None]
    return values.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, *values.shape[2:])


def gather_positions(positions: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Position ids [B or 1, S], or [axes, B or 1, S] where rotary positions have several, at ``index`` [B, M]."""
    if positions.ndim == 3:
        return torch.stack([gather_tokens(section, index, 1) for section in positions])
    return gather_tokens(positions, index, 1)


def gather_rotary(
    rotary: torch.Tensor | tuple[torch.Tensor, ...], index: torch.Tensor
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Rotary embeddings, cos and sin [B or 1, S, E] or one complex tensor, at ``index`` [B, M]."""
    if isinstance(rotary, torch.Tensor):
        return gather_tokens(rotary, index, rotary.ndim - 2)
    return tuple(gather_tokens(part, index, part.ndim - 2) for part in rotary)


def compact(stay: torch.Tensor, slots: int, fillers: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Slots of the tokens that stay, in their order, right-aligned.

    Args:
        stay: [B, S] bool with at most ``slots`` True per row.
        slots: M, known to the host.
        fillers: whether some row has fewer than M.

    Returns:
        index [B, M] into S, and valid [B, M] bool or None.
    """
    index = torch.argsort(stay.to(torch.int8), dim=1, stable=True)[:, stay.shape[1] - slots :]
    return index, stay.gather(1, index) if fillers else None


def gather_mask(mask: torch.Tensor | None, kept: Kept, *, additive: torch.dtype | None) -> torch.Tensor | None:
    """The prefill mask of the kept tokens: rows and columns of the model's own mask.

    Args:
        mask: [B or 1, 1, P, P], bool or additive; None is plainly causal.
        additive: dtype of the masks where the attention adds them (eager); None where it takes bool (sdpa).
    """
    if mask is not None:
        gathered = gather_tokens(gather_tokens(mask, kept.position, 2), kept.position, 3)
        return gathered if kept.valid is None else _isolate_fillers(gathered, kept.valid)
    if kept.valid is None:
        return None
    slots = torch.arange(kept.slots, device=kept.valid.device)
    causal = (slots[None, :] <= slots[:, None]).expand(kept.valid.shape[0], 1, -1, -1)
    return _as_mask(_isolate_fillers(causal, kept.valid), additive)


def continue_mask(
    mask: torch.Tensor | None, kept: Kept, new: int, past: int, held: int, *, additive: torch.dtype | None
) -> torch.Tensor | None:
    """The mask of ``new`` tokens that follow ``past`` logical ones, over what the layer's cache holds.

    Args:
        mask: [B or 1, 1, new, past + new], or None where every new token sees all that is before it.
        held: tokens in the cache, the last of the M + past - P that were.

    Returns:
        [B, 1, new, held + new], or None if there is nothing to hide.
    """
    if mask is None and kept.valid is None:
        return None
    samples, device = kept.position.shape[0], kept.position.device
    later = torch.arange(kept.prompt, past + new, device=device).expand(samples, -1)
    columns = torch.cat([kept.position, later], dim=1)[:, -(held + new) :]
    if mask is None:
        row = torch.arange(past, past + new, device=device)[:, None]
        visible = _as_mask((columns[:, None, :] <= row)[:, None], additive)
    else:
        visible = gather_tokens(mask, columns, 3)
    if kept.valid is None:
        return visible
    valid = torch.cat([kept.valid, torch.ones_like(later, dtype=torch.bool)], dim=1)[:, -(held + new) :]
    return _hide(visible, ~valid[:, None, None, :])


def continue_padding(mask: torch.Tensor | None, kept: Kept, new: int, past: int, held: int) -> torch.Tensor | None:
    """The padding mask of ``new`` tokens that follow ``past`` logical ones, for attention that takes it in this form.

    Args:
        mask: [B, past + new] bool, or None where nothing is padding.
        held: tokens in the cache, the last of the M + past - P that were.

    Returns:
        [B, held + new] bool, or None if there is no padding among what the layer holds.
    """
    if mask is None and kept.valid is None:
        return None
    later = past + new - kept.prompt
    samples, device = kept.position.shape[0], kept.position.device
    prompt = torch.ones(kept.position.shape, dtype=torch.bool, device=device) if kept.valid is None else kept.valid
    if mask is None:
        answer = torch.ones(samples, later, dtype=torch.bool, device=device)
    else:
        answer = mask[:, kept.prompt :].to(device, torch.bool)
    return torch.cat([prompt, answer], dim=1)[:, -(held + new) :]


def _isolate_fillers(mask: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Hide the columns of fillers from all, and all but itself from a filler."""
    valid = valid.to(mask.device)
    hidden = _hide(mask, ~valid[:, None, None, :] | ~valid[:, None, :, None])
    slots = valid.shape[1]
    itself = torch.eye(slots, dtype=torch.bool, device=mask.device) & ~valid[:, None, :, None]
    return hidden | itself if mask.dtype == torch.bool else hidden.masked_fill(itself, 0.0)


def _hide(mask: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    hidden = hidden.to(mask.device)
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


def _as_mask(visible: torch.Tensor, additive: torch.dtype | None) -> torch.Tensor:
    if additive is None:
        return visible
    zeros = torch.zeros(visible.shape, dtype=additive, device=visible.device)
    return zeros.masked_fill(~visible, torch.finfo(additive).min)
