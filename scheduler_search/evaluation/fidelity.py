"""Fidelity: how much of the unreduced model's next-token distributions a reduced model keeps, in [0, 1].

Of one sample it is ``exp(-KL)``, with KL = sum over tokens of p (log p - log q), p the unreduced model's distribution
and q the reduced one's, averaged over the positions of the unreduced model's own greedy answer, its end token included.
It needs no labels, and is exactly 1 for the unreduced model. Knows: distributions, how a generation is recorded and
driven, and where references are kept. Does not know: how a model is run or reduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from scheduler_search.errors import ModelError
from scheduler_search.evaluation.layout import Place


@dataclass(frozen=True)
class Reference:
    """What the unreduced model answers, on the host.

    Args:
        tokens: [B, T] int64, greedy; whatever comes behind an end token.
        logits: T tensors [B, V], those that the tokens are the largest of.
        lengths: [B] int64, positions that count: up to and including the first end token.
    """

    tokens: Tensor
    logits: tuple[Tensor, ...]
    lengths: Tensor

    @classmethod
    def of(cls, tokens: Tensor, logits: Sequence[Tensor], end_tokens: Sequence[int]) -> Reference:
        """The reference of a greedy generation of ``tokens`` [B, T]."""
        tokens = tokens.cpu()
        ends = torch.isin(tokens, torch.tensor(end_tokens, dtype=tokens.dtype))
        ended_before = ends.cumsum(1) - ends.long() > 0
        return cls(tokens, tuple(one.cpu() for one in logits), (~ended_before).sum(1))

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        return sum(one.numel() * one.element_size() for one in (self.tokens, self.lengths, *self.logits))

    def fidelity(self, divergences: Sequence[Tensor]) -> tuple[float, ...]:
        """Fidelity of every sample.

        Args:
            divergences: T tensors [B], of each position of the answers; those behind an end token do not count.

        Raises:
            ModelError: a divergence is not a number, because logits are not.
        """
        table = torch.stack([one.cpu() for one in divergences], dim=1)
        counts = torch.arange(table.shape[1]) < self.lengths[:, None]
        mean = torch.where(counts, table, 0.0).sum(1) / self.lengths
        if bool(mean.isnan().any()):
            raise ModelError(
                "logits must be numbers", actual="NaN", remedy='set [model] dtype to "bfloat16" or "float32"'
            )
        fidelities: list[float] = (-mean).exp().tolist()
        return tuple(fidelities)


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL in nats of the distributions of logits [B, V], the reference's first: [B] float64, exactly 0 for equals."""
    log_p, log_q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), p)  # a token that p excludes counts nothing, whatever q says
    return terms.sum(-1).clamp(min=0)  # rounding may leave a little less than nothing


class Recorder(LogitsProcessor):
    """Looks on while a model generates. ``logits`` has one [B, V] per step, on the host."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Keep the scores and change nothing."""
        self.logits.append(scores.cpu())
        return scores


class Driver(LogitsProcessor):
    """Makes a generation give a reference's tokens. ``divergences`` has one [B] per step."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self.divergences: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Compare the scores with the reference's, and leave its token as the only choice."""
        step = len(self.divergences)
        self.divergences.append(divergence(self._reference.logits[step].to(scores.device), scores))
        token = self._reference.tokens[:, step : step + 1].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class ReferenceStore:
    """References by place, as many as fit; what is not kept is computed again.

    Those that came first stay: chunks take turns, so that any other would always be missed.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._references: dict[Place, Reference] = {}
        self.bytes = 0

    def get(self, place: Place) -> Reference | None:
        """The reference of a place, if it is here."""
        return self._references.get(place)

    def keep(self, place: Place, reference: Reference) -> None:
        """Keep the reference of a place that has none, if memory allows."""
        if self.bytes + reference.bytes <= self._budget:
            self._references[place] = reference
            self.bytes += reference.bytes
