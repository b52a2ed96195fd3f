"""Rules that keep tokens which differ from each other: DivPrune (max-min distance), CDPruner (a conditional DPP).

Both choose greedily, one token after the other, all groups of tokens of a batch at once, in as many steps as the
largest promised count. A token's redundancy is the step at which it was taken. Ties go to the earlier token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scheduler_search.reducers.groups import Groups
from scheduler_search.reducers.similarity import cosine, min_max
from scheduler_search.reducers.text import compared, mean_over, question
from scheduler_search.reducers.tokens import Tokens
from scheduler_search.rule import Rule

# Tokens nearer than this are equal: their distance is the rounding of a cosine.
_SAME = 1e-6
# What is left of a token's weight when the tokens taken before it span it; below this, it adds nothing to them.
_SPANNED = 1e-4


def far_from_each_other(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S] of DivPrune: the next token is the one whose nearest taken token is the farthest away.

    Distances are 1 - cosine. The first token is the one whose nearest neighbour is the farthest away.
    """
    groups = Groups.of(tokens, rule)
    similarity = cosine(tokens.hidden)
    # Equally far in both directions to the last bit: two tokens that are each other's nearest are a tie.
    distance = 1.0 - (similarity + similarity.transpose(1, 2)) / 2
    distance = torch.where(distance < _SAME, 0.0, distance)
    gap = groups.spread(_nearest(distance, groups))
    greedy = _Greedy.start(groups)
    for step in range(max(tokens.counts, default=0)):
        taken = greedy.take(gap, step)
        row = distance[groups.sample, taken]
        gap = row if step == 0 else torch.minimum(gap, row)
    return groups.gathered(greedy.step)


def _nearest(distance: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Distance [B, S] of each token to the nearest other one of its group."""
    itself = torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
    return distance.masked_fill(itself | ~groups.together(), float("inf")).amin(dim=2)


def relevant_and_diverse(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S] of CDPruner: greedy MAP inference of a DPP with the kernel r_i cos(i, j) r_j.

    r is the relevance to the question, 0 to 1 within a group. When all that is left is spanned by what was taken, the
    determinant is zero whatever comes next, and relevance decides.
    """
    groups = Groups.of(tokens, rule)
    similarity, relevance = cosine(tokens.hidden), _relevance(tokens, groups, rule)
    volumes = _Volumes.start(relevance, max(tokens.counts, default=0))
    greedy = _Greedy.start(groups)
    for step in range(max(tokens.counts, default=0)):
        taken = greedy.take(volumes.gain(), step)
        volumes.add(taken, similarity[groups.sample, taken], step)
    return groups.gathered(greedy.step)


def _relevance(tokens: Tokens, groups: Groups, rule: Rule) -> torch.Tensor:
    """r [G, S]: the mean cosine to the tokens of the question, brought to 0..1; 1 where all are as relevant.

    Under ``relevance = "far"`` it is the negative of that mean.

    Of the decoder's embeddings of the question and projected patches, or, with ``text_features = "clip"``, of both in
    CLIP's space. The diversity is that of projected patches either way.
    """
    text = question(tokens)
    nearness = groups.spread(mean_over(cosine(text.values, compared(tokens)), text.real))
    brought = min_max(-nearness if rule.text("relevance") == "far" else nearness, groups.member)
    return torch.where(brought.amax(dim=1, keepdim=True) > 0, brought, 1.0)


@dataclass(frozen=True)
class _Greedy:
    """Which tokens are left to take, and at which step each was: ``open`` and ``step`` [G, S], written in place."""

    open: torch.Tensor
    step: torch.Tensor

    @classmethod
    def start(cls, groups: Groups) -> _Greedy:
        member = groups.member
        return cls(member, torch.full(member.shape, float("inf"), device=member.device))

    def take(self, scores: torch.Tensor, step: int) -> torch.Tensor:
        """Take the open token with the highest of ``scores`` [G, S] in each group: [G, 1], any where none is left."""
        best = scores.masked_fill(~self.open, float("-inf")).argmax(dim=1, keepdim=True)
        # A group with nothing left takes a token that is taken, or none of its own: the step stays as it is.
        before = self.step.gather(1, best)
        self.step.scatter_(1, best, torch.where(self.open.gather(1, best), float(step), before))
        self.open.scatter_(1, best, False)
        return best[:, 0]


@dataclass(frozen=True)
class _Volumes:
    """The Cholesky factor of a kernel, one row per taken token (Chen, Zhang and Zhou, 2018).

    Args:
        relevance: r [G, S].
        rows: [G, n, S], the first ones filled.
        left: [G, S] what is left of each token's diagonal entry; the factor by which it would raise the determinant.
    """

    relevance: torch.Tensor
    rows: torch.Tensor
    left: torch.Tensor

    @classmethod
    def start(cls, relevance: torch.Tensor, steps: int) -> _Volumes:
        G, S = relevance.shape
        return cls(relevance, relevance.new_zeros(G, steps, S), relevance.square())

    def gain(self) -> torch.Tensor:
        """[G, S] to take the highest of: what is left, or, where that is nothing, a negative number with relevance."""
        return torch.where(self.left > _SPANNED * self.relevance.square(), self.left, self.relevance - 2.0)

    def add(self, taken: torch.Tensor, similarity: torch.Tensor, step: int) -> None:
        """Take one token of each group: ``taken`` [G], and its cosine [G, S] with all others."""
        index = taken[:, None]
        own, left = self.relevance.gather(1, index), self.left.gather(1, index)
        entries = own * similarity * self.relevance
        if step:
            before = self.rows[:, :step]
            at = before.gather(2, index[:, None].expand(-1, step, -1))
            entries = entries - torch.matmul(at.transpose(1, 2), before)[:, 0]
        spans = left > _SPANNED * own.square()
        row = torch.where(spans, entries / left.clamp(min=torch.finfo(left.dtype).tiny).sqrt(), 0.0)
        self.rows[:, step] = row
        self.left.sub_(row.square())
