"""Local Token Affinity Measure (seed 004, eq. 4 and 5): how much a token's neighbours in its image hold to it.

Neighbours are the other tokens of a k x k window around a token in the grid of its image, as far as they are left. A
token hands out an affinity to each of its neighbours: a softmax over them of -(feature distance / (w1 sigma))^2, and w3
times the same of the positions; sigma is the standard deviation of these distances. The local importance of a token is
the mean of the affinities that its neighbours hand to it.

The paper averages "over all neighboring tokens". The affinities that a token hands out sum to 1 + w3 by construction,
so that their mean would be the same for all tokens with as many neighbours, whatever the image shows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from scheduler_search.reducers.tokens import Prompt, Tokens
from scheduler_search.rule import Rule

# Distances that differ by less than this part of their mean are taken to be equal: sigma must not be rounding alone.
_LEAST_SPREAD = 1e-2


def local_affinity(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """S^l [B, S]: 0 for a token with no neighbour left, and for what is no vision token."""
    side = rule.whole("window")
    neighbours, steps = _neighbours(tokens, side)
    there = neighbours >= 0
    features = _shares(_distances(tokens.hidden, neighbours.clamp(min=0)), there, rule.number("feature_scale"))
    positions = _shares(steps.to(features).expand_as(features), there, rule.number("position_scale"))
    given = features + rule.number("position_weight") * positions
    received = _of_neighbours(given.flip(2), neighbours.clamp(min=0))
    return received.masked_fill(~there, 0.0).sum(dim=2) / there.sum(dim=2).clamp(min=1)


def _of_neighbours(values: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
    """[B, S, o]: what the neighbour at each offset has among its ``values`` [B, S, o] at that place.

    A token is seen by its neighbour at the opposite offset, which is as far from the end as that one is from the start.
    """
    return values.gather(1, neighbours)


def _distances(hidden: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
    """Distance [B, S, o] of each slot's features to those of its ``neighbours`` [B, S, o]; both ways at once."""
    B, S, D = hidden.shape
    values = hidden.to(torch.promote_types(hidden.dtype, torch.float32)).reshape(B * S, D)
    rows = neighbours + S * torch.arange(B, device=hidden.device)[:, None, None]
    half = [
        torch.linalg.vector_norm(values - values.index_select(0, one.flatten()), dim=1).view(B, S)
        for one in rows[..., : rows.shape[2] // 2].unbind(2)
    ]
    there = torch.stack(half, dim=2)
    back = _of_neighbours(there.flip(2), neighbours[..., there.shape[2] :])
    return torch.cat([there, back], dim=2)


def _shares(distance: torch.Tensor, there: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax [B, S, o] of -(distance / (scale sigma))^2 over the neighbours that are ``there``; 0 elsewhere."""
    number = there.sum(dim=2, keepdim=True).clamp(min=1)
    known = torch.where(there, distance, 0.0)
    mean = known.sum(dim=2, keepdim=True) / number
    sigma = (torch.where(there, distance - mean, 0.0).square().sum(dim=2, keepdim=True) / number).sqrt()
    sigma = torch.maximum(sigma, _LEAST_SPREAD * mean).clamp(min=torch.finfo(distance.dtype).tiny)
    kernel = -(known / (scale * sigma)).square()
    lowest = torch.finfo(kernel.dtype).min
    return torch.where(there, kernel.masked_fill(~there, lowest).softmax(dim=2), 0.0)


def _neighbours(tokens: Tokens, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Present slot [B, S, o] of the neighbour at each offset, -1 for none, and the length [o] of the offsets."""
    prompt, device = tokens.prompt, tokens.hidden.device
    places, lengths = prompt.once(
        (local_affinity, side, device),
        lambda: tuple(torch.from_numpy(part).to(device) for part in _places_around(prompt, side)),
    )
    B, S = tokens.position.shape
    # One place more than the prompt has: where slots without a vision token go, and where no neighbour is looked up.
    nowhere = prompt.slots
    slot_of = torch.full((B, nowhere + 1), -1, dtype=torch.int64, device=device)
    slots = torch.arange(S, device=device).expand(B, -1)
    slot_of.scatter_(1, tokens.position.masked_fill(~tokens.vision, nowhere), slots)
    slot_of[:, nowhere] = -1
    around = places.gather(1, tokens.position[..., None].expand(-1, -1, places.shape[2]))
    found = slot_of.gather(1, around.flatten(1)).view_as(around)
    return found.masked_fill(~tokens.vision[..., None], -1), lengths


def _places_around(prompt: Prompt, side: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Prompt slot [B, S0, o] at each offset of a vision slot, S0 for outside of its image; the offsets' lengths [o]."""
    reach = range(-(side // 2), side // 2 + 1)
    offsets = [(down, right) for down in reach for right in reach if (down, right) != (0, 0)]
    places = np.full((*prompt.vision.shape, len(offsets)), prompt.slots, dtype=np.int64)
    for sample, grids in enumerate(prompt.grids):
        slots, start = np.flatnonzero(prompt.vision[sample]), 0
        for grid in grids:
            image = slots[start : start + grid.tokens].reshape(grid.height, grid.width)
            edged = np.pad(image, side // 2, constant_values=prompt.slots)
            for number, (down, right) in enumerate(offsets):
                top, left = side // 2 + down, side // 2 + right
                places[sample, image, number] = edged[top : top + grid.height, left : left + grid.width]
            start += grid.tokens
    return places, np.array([np.hypot(*offset) for offset in offsets])
