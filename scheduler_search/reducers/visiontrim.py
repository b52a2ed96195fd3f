"""VisionTrim (seed 004): dominant tokens by a global and a local score, and complement tokens that the text asks for.

Of n promised tokens, a share R are complement tokens, the other K = n - R are dominant. The dominant ones (DVTS) score
highest in eq. 6: at the entry, the class attention is the global score (eq. 1-3); in the decoder, it is the attention
that text pays to them by their hidden states (eq. 13). The complement ones (TGVC, eq. 7-12) are, of the rest, those
that the text asks for most; each of the others is added to one of them. The text is the decoder's hidden states of the
question, or, at the entry with ``text_features = "clip"``, what CLIP makes of it (``text``).

Read so that the equations say something:

* The softmax of eq. 13 runs over vision tokens, as that of eq. 7 must: over text tokens, its mean would be 1 / N_t for
  every vision token.
* Eq. 14 has learned weights; here, dropped tokens go into complement tokens with the weights of eq. 11.
* Eq. 11 adds the weighted mean of a cluster to its centre, so that weights into a centre sum to two, and to one more
  with each iteration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from scheduler_search.reducers.affinity import local_affinity
from scheduler_search.reducers.groups import Groups, highest, part_of
from scheduler_search.reducers.text import compared, mean_over, question
from scheduler_search.reducers.tokens import Text, Tokens, required
from scheduler_search.rule import Rule

# Local scores whose standard deviation is less than this part of their mean are equal but for rounding.
_FLAT = 1e-3


def class_dominant(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S] at the entry: 0 for dominant tokens, 1 for complement ones, 2 for the others."""
    return _redundancy(tokens, rule, required(tokens.attention, "attention"))


def text_dominant(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S] in the decoder: 0 for dominant tokens, 1 for complement ones, 2 for the others."""
    return _redundancy(tokens, rule, None)


def class_clusters(tokens: Tokens, kept: torch.Tensor, rule: Rule) -> torch.Tensor:
    """C [B, S, S] at the entry: the weights of eq. 11, and 1 from each kept token into itself."""
    return _clusters(tokens, kept, rule, required(tokens.attention, "attention"))


def text_clusters(tokens: Tokens, kept: torch.Tensor, rule: Rule) -> torch.Tensor:
    """C [B, S, S] in the decoder: the weights of eq. 11, and 1 from each kept token into itself."""
    return _clusters(tokens, kept, rule, None)


def weigh_by_variance(seen: torch.Tensor, local: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    """Eq. 6 [G, S]: both scores, each with the share of the other's variance.

    Where all local scores are equal, eq. 6 would listen to them alone, and to their rounding: ``seen`` decides.
    """
    (_, first), (mean, second) = _moments(seen, member), _moments(local, member)
    flat = second <= (_FLAT * mean).square()
    total = (first + second).clamp(min=torch.finfo(first.dtype).tiny)
    return torch.where(flat, seen, (second * seen + first * local) / total)


@dataclass(frozen=True)
class _Question:
    """Scaled products of text and vision tokens: ``logits`` [G, L, S], ``real`` [G, L] rows."""

    logits: torch.Tensor
    real: torch.Tensor

    @classmethod
    def of(cls, tokens: Tokens, groups: Groups) -> _Question:
        text, vision = question(tokens), compared(tokens)
        return cls(groups.spread(_products(text.values, vision)), groups.spread(text.real))

    def attention(self, among: torch.Tensor) -> torch.Tensor:
        """Eq. 7 and 13 [G, S]: softmax of each text row over the tokens ``among`` [G, S], mean over the rows."""
        logits = self.logits.masked_fill(~among[:, None], torch.finfo(self.logits.dtype).min)
        return mean_over(logits.softmax(dim=2), self.real).masked_fill(~among, 0.0)


def _redundancy(tokens: Tokens, rule: Rule, attention: torch.Tensor | None) -> torch.Tensor:
    groups = Groups.of(tokens, rule)
    asked = _Question.of(tokens, groups)
    dominant = tokens.once((_dominant, rule), lambda: _dominant(tokens, rule, groups, attention, asked))
    rest = groups.member & ~dominant
    complement = highest(asked.attention(rest), rest, part_of(groups.keep.flatten(), rule.number("complement")))
    return groups.gathered(torch.where(dominant, 0.0, torch.where(complement, 1.0, 2.0)))


def _dominant(
    tokens: Tokens, rule: Rule, groups: Groups, attention: torch.Tensor | None, asked: _Question
) -> torch.Tensor:
    """[G, S] bool, the K tokens with the highest scores; ``attention`` [B, S] is that of the class token."""
    member, keep = groups.member, groups.keep.flatten()
    seen = asked.attention(member) if attention is None else _as_distribution(groups.spread(attention), member)
    local = groups.spread(local_affinity(tokens, rule))
    scores = weigh_by_variance(seen, local.to(seen.dtype), member)
    return highest(scores, member, keep - part_of(keep, rule.number("complement")))


def _as_distribution(attention: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    """Softmax of the global scores over a group, less what is the same for all its tokens.

    Attention is small, so that its exponentials are all near one: the differences would drown in rounding.
    """
    lowest = torch.finfo(attention.dtype).min
    below = attention - attention.masked_fill(~member, lowest).amax(dim=1, keepdim=True)
    differences = torch.expm1(below).masked_fill(~member, 0.0)
    total = differences.sum(dim=1, keepdim=True) + member.sum(dim=1, keepdim=True)
    return differences / total.clamp(min=1)


def _moments(values: torch.Tensor, member: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance, both [G, 1], over the members of each group."""
    number = member.sum(dim=1, keepdim=True).clamp(min=1)
    mean = values.masked_fill(~member, 0.0).sum(dim=1, keepdim=True) / number
    variance = (values - mean).masked_fill(~member, 0.0).square().sum(dim=1, keepdim=True) / number
    return mean, variance


def _clusters(tokens: Tokens, kept: torch.Tensor, rule: Rule, attention: torch.Tensor | None) -> torch.Tensor:
    """Eq. 8-11, repeated: the centres that come of one iteration are those of the next."""
    groups = Groups.of(tokens, rule)
    dominant = tokens.once(
        (_dominant, rule), lambda: _dominant(tokens, rule, groups, attention, _Question.of(tokens, groups))
    )
    centres = kept & ~groups.gathered(dominant)
    allowed = groups.together() & ~kept[:, :, None] & centres[:, None, :]
    text, vision = question(tokens), compared(tokens)
    asks = _over_text(vision, text)
    weights = torch.diag_embed(kept.to(vision.dtype))
    sources = torch.where(tokens.vision[..., None], vision, 0.0)
    for _ in range(rule.whole("iterations")):
        answers = _over_text(torch.matmul(weights.transpose(1, 2), sources), text)
        weights = weights + _shares(torch.matmul(asks, answers.transpose(1, 2)), allowed)
    return weights


def _shares(assignment: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Eq. 10 and 11: each source to the ``allowed`` centre with the highest a, with its share of the cluster's a."""
    best = assignment.masked_fill(~allowed, float("-inf")).argmax(dim=2, keepdim=True)
    chosen = torch.zeros_like(allowed).scatter_(2, best, True) & allowed
    shares = torch.where(chosen, assignment, 0.0)
    return shares / shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)


def _over_text(vision: torch.Tensor, text: Text) -> torch.Tensor:
    """Eq. 8 [B, S, L]: softmax over the text tokens of each vision token's products with them; 0 without text."""
    outside = ~text.real[:, None]
    logits = _products(vision, text.values).masked_fill(outside, torch.finfo(vision.dtype).min)
    return logits.softmax(dim=2).masked_fill(outside, 0.0)


def _products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[B, S, T]: scaled dot products of [B, S, E] and [B, T, E]."""
    return torch.matmul(left, right.transpose(1, 2)) / math.sqrt(left.shape[2])
