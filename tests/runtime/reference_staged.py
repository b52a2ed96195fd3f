"""A second opinion on what a rule is given and where its tokens go: the masked full-length eager model, rule by rule.

Each sample is reduced by itself, from what the unmodified model computes: hidden rows are replaced where tokens were
merged, dropped columns are masked. That the stages do as described is not asked here (``tests/reducers``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scheduler_search.reducers import AttentionRows, Grid, Prompt, Tokens, reduce_tokens
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import Rule
from tests.reducers.test_sparsevlm import weights_by_loops
from tests.runtime.reference_mask import Entry, MaskedReference
from tests.runtime.tiny import SIDE
from tests.runtime.towers import MaskedTower


class StagedReference(MaskedReference):
    """As ``MaskedReference``, of any rule of the decoder."""

    def __init__(
        self,
        model: Any,
        rates: Sequence[float],
        inputs: dict[str, torch.Tensor],
        rule: Rule,
        entry: Entry | None = None,
    ) -> None:
        super().__init__(model, rates, inputs, entry=entry)
        self.reducer = load_reducer(rule, "decoder")
        self.keys: torch.Tensor | None = None
        self.embeddings: torch.Tensor | None = None
        self.most_merged = 0.0

    def __enter__(self) -> StagedReference:
        super().__enter__()
        modules = {layer.self_attn for layer in self.layers}
        before = ALL_ATTENTION_FUNCTIONS["eager"]

        def eager(module: Any, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if module in modules:
                self.keys = key
            return before(module, query, key, *args, **kwargs)

        ALL_ATTENTION_FUNCTIONS["eager"] = eager
        return self

    def _drop(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        if index == 0:
            self.embeddings = hidden
            return super()._drop(index, hidden)
        hidden = hidden.clone()
        for sample in range(len(self.ids)):
            left = self.vision[sample] & ~self.dead[sample]
            keep = int(self.rates[index] * int(self.vision[sample].sum()) + 0.5)
            if keep < int(left.sum()):
                reduced = reduce_tokens(self.reducer, self._tokens(sample, hidden[sample], left, keep))
                self.most_merged = max(self.most_merged, float((hidden[sample] - reduced.hidden[0]).abs().max()))
                hidden[sample] = reduced.hidden[0]
                self.dead[sample] |= left & ~reduced.kept[0]
        return hidden

    def _tokens(self, sample: int, hidden: torch.Tensor, left: torch.Tensor, keep: int) -> Tokens:
        rows, weights = self._rows(sample)
        assert self.weights is not None
        assert self.keys is not None
        values = self.weights[sample][:, rows].mean(0).masked_fill(self.dead[sample], 0.0)
        real, vision = self.real[sample].numpy(), self.vision[sample].numpy()
        return Tokens(
            hidden=hidden[None],
            vision=left[None],
            position=torch.arange(len(left))[None],
            attention=(values * weights[:, None]).sum(0)[None],
            keep=torch.tensor([keep]),
            counts=(keep,),
            prompt=Prompt(self.ids[sample].numpy()[None].astype(np.int64), real[None], vision[None]),
            rows=AttentionRows(values[None], torch.tensor(rows)[None], weights[None]),
            keys=self.keys[sample].transpose(0, 1)[None],
        )

    def _rows(self, sample: int) -> tuple[list[int], torch.Tensor]:
        """Slots of the query rows, and their weights."""
        kind = self.reducer.reads.rows
        if kind == "every":
            rows = (self.real[sample] & ~self.dead[sample]).nonzero()[:, 0].tolist()
            return rows, torch.full((len(rows),), 1 / len(rows))
        rows = self._query_rows(sample)
        if kind != "raters":
            return rows, torch.full((len(rows),), 1 / len(rows))
        assert self.embeddings is not None
        vision = self.vision[sample].nonzero()[:, 0].tolist()
        return rows, torch.tensor(weights_by_loops(self.embeddings[sample].double(), vision, rows)).float()


class StagedTower(MaskedTower):
    """As ``MaskedTower``, of a rule of the tower that reads every row."""

    def __init__(self, model: Any, kind: str, rates: tuple[float, ...], rule: Rule) -> None:
        super().__init__(model, kind, rates)
        self.reducer = load_reducer(rule, "vision")

    def _before(self, layer: int) -> Callable[..., Any]:
        mask = super()._before(layer)

        def hook(module: Any, args: tuple[Any, ...]) -> Any:
            self.hidden = args[0].clone()
            (_, masked, *rest) = mask(module, args)
            return (self.hidden, masked, *rest)

        return hook

    def _drop(self, attention: torch.Tensor, rate: float) -> None:
        """Rows of ``hidden`` are replaced where patches were merged."""
        for image, dead in enumerate(self.dead):
            keep = int(rate * len(dead) + 0.5)
            if keep < int((~dead).sum()):
                tokens = self._tokens(attention[image].mean(0), self.hidden[image], dead, keep)
                reduced = reduce_tokens(self.reducer, tokens)
                self.hidden[image] = reduced.hidden[0]
                dead |= ~reduced.kept[0, self.classes :]

    def _tokens(self, attention: torch.Tensor, hidden: torch.Tensor, dead: torch.Tensor, keep: int) -> Tokens:
        gone = torch.cat([torch.zeros(self.classes, dtype=torch.bool), dead])
        patches = torch.arange(len(gone)) >= self.classes
        rows = (~gone).nonzero()[:, 0]
        values = attention[rows].masked_fill(gone, 0.0)
        weights = torch.full((1, len(rows)), 1 / len(rows))
        real = np.ones((1, len(gone)), bool)
        return Tokens(
            hidden=hidden[None],
            vision=(patches & ~gone)[None],
            position=torch.arange(len(gone))[None],
            attention=values.mean(0)[None],
            keep=torch.tensor([keep]),
            counts=(keep,),
            prompt=Prompt(real.astype(np.int64), real, patches.numpy()[None], ((Grid(SIDE, SIDE),),)),
            rows=AttentionRows(values[None], rows[None], weights),
        )
