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
from scheduler_search.reducers.selection import least_redundant, least_redundant_first, marked_first, places
from scheduler_search.reducers.similarity import squared_distances
from scheduler_search.reducers.tokens import Tokens, required
from scheduler_search.rule import Rule


def unrated_or_not_a_centre(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: the place in the ranking by the raters' attention, but centres of clusters go last."""
    recycling = tokens.once((_Recycling, rule), lambda: _Recycling.of(tokens, rule))
    ranking = recycling.place.to(torch.float32)
    if not rule.number("recycled"):
        return ranking
    distances = tokens.once((_Recycling.distances, rule), lambda: recycling.distances(tokens.hidden))
    peaks = _peaks(distances, recycling.real, recycling.centres)
    centres = least_redundant(-peaks, recycling.real, recycling.centres)
    return torch.where(torch.zeros_like(tokens.vision).scatter_(1, recycling.slots, centres), -1.0, ranking)


def nearest_centre(tokens: Tokens, kept: torch.Tensor, rule: Rule) -> torch.Tensor:
    """C [B, S, S]: the squared distance from each token that is clustered to each centre, negated; else -inf."""
    recycling = tokens.once((_Recycling, rule), lambda: _Recycling.of(tokens, rule))
    distances = tokens.once((_Recycling.distances, rule), lambda: recycling.distances(tokens.hidden))
    correlation = distances.new_full((*kept.shape, kept.shape[1]), float("-inf"))
    centres = kept.gather(1, recycling.slots) & recycling.real
    samples = torch.arange(len(kept), device=kept.device)[:, None, None]
    places = (samples, recycling.slots[:, :, None], recycling.slots[:, None, :])
    correlation[places] = (-distances).masked_fill(~centres[:, None, :], float("-inf"))
    return correlation


def reconstructed(tokens: Tokens, kept: torch.Tensor, correlation: torch.Tensor, rule: Rule) -> torch.Tensor:
    """W [B, S, S]: each centre becomes the mean, or the sum, of the tokens that are nearest to it and itself."""
    weights = into_the_best(tokens, kept, correlation, rule)
    return weights if rule.text("reconstruction") == "mean" else (weights > 0).to(weights.dtype)


@dataclass(frozen=True)
class _Recycling:
    """Which tokens are clustered, and into how many centres. R is at least as many as any sample clusters.

    Args:
        place: [B, S] place of each slot in the ranking by attention, vision tokens first.
        slots: [B, R] slots of what is clustered, in order, and of others that fill up.
        real: [B, R] bool, False for those that fill up.
        centres: [B] int64.
    """

    place: torch.Tensor
    slots: torch.Tensor
    real: torch.Tensor
    centres: torch.Tensor

    @classmethod
    def of(cls, tokens: Tokens, rule: Rule) -> _Recycling:
        place = places(least_redundant_first(-required(tokens.attention, "attention"), tokens.vision))
        lost = tokens.vision.sum(dim=1) - tokens.keep
        centres, clustered = _numbers(lost, tokens.keep, rule)
        start = (tokens.keep - centres)[:, None]
        marked = (place >= start) & (place < start + clustered[:, None])
        slots = marked_first(marked, _most_clustered(tokens, rule))
        return cls(place, slots, marked.gather(1, slots), centres)

    def distances(self, hidden: torch.Tensor) -> torch.Tensor:
        """Squared distances [B, R, R] between the tokens that are clustered, per feature; infinity for the others."""
        samples = torch.arange(len(hidden), device=hidden.device)[:, None]
        distances = squared_distances(hidden[samples, self.slots]) / hidden.shape[2]
        return distances.masked_fill(~(self.real[:, :, None] & self.real[:, None, :]), float("inf"))


def _numbers(lost: torch.Tensor, keep: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """How many centres there are, and how many tokens are clustered, [B] each, of [B] that go and [B] that are kept."""
    share = rule.number("recycled")
    centres = torch.minimum(_floor(lost, _centres_per_lost(rule)) + 1, keep // 2) * ((lost > 0) & (share > 0))
    clustered = torch.minimum(torch.maximum(_floor(lost + centres, share) + 1, centres), lost + centres)
    return centres, clustered * (centres > 0)


def _most_clustered(tokens: Tokens, rule: Rule) -> int:
    """A bound that the host knows, of the most that any sample clusters: as if nothing had been dropped before."""
    lost = max(total - count for total, count in zip(tokens.prompt.vision_tokens, tokens.counts, strict=True))
    centres = min(int(lost * _centres_per_lost(rule) + 1e-9) + 1, max(tokens.counts) // 2)
    return max(int((lost + centres) * rule.number("recycled") + 1e-9) + 1, centres)


def _centres_per_lost(rule: Rule) -> float:
    share = rule.number("recycled") / rule.whole("tokens_per_cluster")
    return share / (1 - share)


def _floor(numbers: torch.Tensor, share: float) -> torch.Tensor:
    """``share`` of whole numbers, rounded down; products that are whole numbers on paper are."""
    return torch.floor(numbers.to(torch.float64) * share + 1e-9).to(torch.int64)


def _peaks(distances: torch.Tensor, real: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Logarithm of density times distance to the nearest denser token, [B, R]; of what is clustered.

    The density is exp(-mean squared distance to the nearest tokens, itself included), of as many as there are centres,
    but two at least; equal densities are ordered by slot. The densest token is as far from a denser one as from the
    furthest of all. In logarithms, since densities of decoder states fall below the smallest float.
    """
    numbers = torch.minimum(centres.clamp(min=2), real.sum(dim=1)).clamp(min=1)[:, None]
    last = (numbers - 1)[..., None].expand(-1, distances.shape[1], 1)
    density = -distances.sort(dim=2).values.cumsum(dim=2).gather(2, last)[..., 0] / numbers
    slots = torch.arange(distances.shape[1], device=distances.device)
    denser = density[:, None, :] > density[:, :, None]
    denser |= (density[:, None, :] == density[:, :, None]) & (slots[None, :] < slots[:, None])
    gap = distances.masked_fill(~denser, float("inf")).amin(dim=2)
    furthest = distances.masked_fill(distances.isinf(), 0.0).amax(dim=2)
    return density + 0.5 * torch.where(gap.isinf(), furthest, gap).log()
