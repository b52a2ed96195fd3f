"""SparseVLM (arXiv 2410.04417): tokens ranked by the attention of raters, and the best of the others recycled.

Recycled tokens sit in slots that are kept, and so they count. Of a promise of n tokens out of V, m are recycled and
n - m stay as they are: with the share ``recycled`` of the V - (n - m) others that is clustered, and one cluster for
every ``tokens_per_cluster`` of those,

    m = 1 + floor(q (V - n) / (1 - q)), q = recycled / tokens_per_cluster, at most n // 2 and nothing where V = n,
    r = 1 + floor(recycled (V - n + m)) tokens are clustered, at least m.

These are the numbers of the published code (but for one where it rounds twice), solved for the tokens that leave:
there n - m is what the user asks for, and the m are added to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scheduler_search.reducers.compress import into_the_best
from scheduler_search.reducers.selection import least_redundant, least_redundant_first, places
from scheduler_search.reducers.similarity import squared_distances
from scheduler_search.reducers.tokens import Tokens, required
from scheduler_search.rule import Rule


def unrated_or_not_a_centre(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: the place in the ranking by the raters' attention, but centres of clusters go last."""
    recycling = _Recycling.of(tokens, rule)
    ranking = recycling.place.to(torch.float32)
    if not rule.number("recycled"):
        return ranking
    peaks = _peaks(_distances(tokens, recycling), recycling, _most_centres(tokens, rule))
    centres = least_redundant(-peaks, recycling.clustered, recycling.centres)
    return torch.where(centres, -1.0, ranking)


def nearest_centre(tokens: Tokens, kept: torch.Tensor, rule: Rule) -> torch.Tensor:
    """C [B, S, S]: the squared distance from each token that is clustered to each centre, negated; else -inf."""
    recycling = _Recycling.of(tokens, rule)
    centres = kept & recycling.clustered
    return (-_distances(tokens, recycling)).masked_fill(~centres[:, None, :], float("-inf"))


def reconstructed(tokens: Tokens, kept: torch.Tensor, correlation: torch.Tensor, rule: Rule) -> torch.Tensor:
    """W [B, S, S]: each centre becomes the mean, or the sum, of the tokens that are nearest to it and itself."""
    weights = into_the_best(tokens, kept, correlation, rule)
    return weights if rule.text("reconstruction") == "mean" else (weights > 0).to(weights.dtype)


@dataclass(frozen=True)
class _Recycling:
    """Which tokens are clustered, and into how many centres.

    Args:
        place: [B, S] place of each slot in the ranking by attention, vision tokens first.
        clustered: [B, S] bool, the best of those that are not kept as they are.
        centres: [B] int64.
    """

    place: torch.Tensor
    clustered: torch.Tensor
    centres: torch.Tensor

    @classmethod
    def of(cls, tokens: Tokens, rule: Rule) -> _Recycling:
        place = places(least_redundant_first(-required(tokens.attention, "attention"), tokens.vision))
        lost = tokens.vision.sum(dim=1) - tokens.keep
        centres = _floor(lost, _centres_per_lost(rule)) + 1 if rule.number("recycled") else torch.zeros_like(lost)
        centres = torch.minimum(centres, tokens.keep // 2) * (lost > 0)
        others = lost + centres
        most = torch.minimum(torch.maximum(_floor(others, rule.number("recycled")) + 1, centres), others)
        start = (tokens.keep - centres)[:, None]
        clustered = (place >= start) & (place < start + (most * (centres > 0))[:, None])
        return cls(place, clustered, centres)


def _centres_per_lost(rule: Rule) -> float:
    share = rule.number("recycled") / rule.whole("tokens_per_cluster")
    return share / (1 - share)


def _floor(numbers: torch.Tensor, share: float) -> torch.Tensor:
    """``share`` of whole numbers, rounded down; products that are whole numbers on paper are."""
    return torch.floor(numbers.to(torch.float64) * share + 1e-9).to(torch.int64)


def _most_centres(tokens: Tokens, rule: Rule) -> int:
    """A bound for the number of centres that the host knows: as if nothing had been dropped before."""
    lost = max(total - count for total, count in zip(tokens.prompt.vision_tokens, tokens.counts, strict=True))
    return min(int(lost * _centres_per_lost(rule) + 1e-9) + 1, max(tokens.counts) // 2)


def _distances(tokens: Tokens, recycling: _Recycling) -> torch.Tensor:
    """Squared distances [B, S, S] between the tokens that are clustered, per feature; infinity for all others."""
    pairs = recycling.clustered[:, :, None] & recycling.clustered[:, None, :]
    distances = squared_distances(tokens.hidden) / tokens.hidden.shape[2]
    return distances.masked_fill(~pairs, float("inf"))


def _peaks(distances: torch.Tensor, recycling: _Recycling, most: int) -> torch.Tensor:
    """Logarithm of density times distance to the nearest denser token, [B, S]; of what is clustered.

    The density is exp(-mean squared distance to the nearest tokens, itself included), of as many as there are centres,
    but two at least; equal densities are ordered by slot. The densest token is as far from a denser one as from the
    furthest of all. In logarithms, since densities of decoder states fall below the smallest float.
    """
    numbers = torch.minimum(recycling.centres.clamp(min=2), recycling.clustered.sum(dim=1)).clamp(min=1)[:, None]
    nearest = distances.topk(min(max(most, 2), distances.shape[2]), dim=2, largest=False, sorted=True).values
    last = (numbers - 1).clamp(max=nearest.shape[2] - 1)[..., None].expand(-1, distances.shape[1], 1)
    density = -nearest.cumsum(dim=2).gather(2, last)[..., 0] / numbers
    slots = torch.arange(distances.shape[1], device=distances.device)
    denser = density[:, None, :] > density[:, :, None]
    denser |= (density[:, None, :] == density[:, :, None]) & (slots[None, :] < slots[:, None])
    gap = distances.masked_fill(~denser, float("inf")).amin(dim=2)
    furthest = distances.masked_fill(distances.isinf(), 0.0).amax(dim=2)
    return density + 0.5 * torch.where(gap.isinf(), furthest, gap).log()
