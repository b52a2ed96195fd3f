"""Which vision tokens a rule chooses among together: those of a sample, or of each image under a quota per image.

A rule that looks at tokens one by one needs none of this: the driver shares out its ranking. A rule whose choice
depends on what else is chosen must know the group, and how many of it stay, before it chooses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scheduler_search.reducers.quota import per_image, spread_over_images
from scheduler_search.reducers.selection import least_redundant
from scheduler_search.reducers.tokens import Tokens, required
from scheduler_search.rule import Rule


@dataclass(frozen=True)
class Groups:
    """The groups of a batch, K per sample at most.

    Args:
        group: [B, S] int64, the group of each vision token; K for all other slots.
        keep: [B, K] int64, how many tokens of each group stay.
    """

    group: torch.Tensor
    keep: torch.Tensor

    @classmethod
    def of(cls, tokens: Tokens, rule: Rule) -> Groups:
        """One group per sample, or one per image where the rule has a quota that says so."""
        if not per_image(rule):
            return cls((~tokens.vision).to(torch.int64), tokens.keep[:, None])
        numbers, device = required(tokens.prompt.images, "prompt.images"), tokens.hidden.device
        most = int(numbers.max(initial=0)) + 1
        images = tokens.prompt.once((Groups, device), lambda: torch.from_numpy(numbers).to(device))
        group = images.gather(1, tokens.position).masked_fill(~tokens.vision, most)
        # How many seats an image gets does not depend on who sits there.
        seats = spread_over_images(torch.zeros_like(tokens.position, dtype=torch.float32), tokens)
        stay = least_redundant(seats, tokens.vision, tokens.keep)
        keep = torch.zeros(group.shape[0], most + 1, dtype=torch.int64, device=device)
        return cls(group, keep.scatter_add_(1, group, stay.to(torch.int64))[:, :most])

    @property
    def number(self) -> int:
        """K."""
        return self.keep.shape[1]

    @property
    def member(self) -> torch.Tensor:
        """[B K, S] bool, the tokens of each group, the groups of a sample one after the other."""
        numbers = torch.arange(self.number, device=self.group.device)
        return (self.group[:, None] == numbers[:, None]).flatten(0, 1)

    @property
    def sample(self) -> torch.Tensor:
        """[B K] int64, the sample of each group."""
        samples = torch.arange(len(self.group), device=self.group.device)
        return samples.repeat_interleave(self.number)

    def together(self) -> torch.Tensor:
        """[B, S, S] bool, which two vision tokens are of one group."""
        found = self.group[:, :, None] == self.group[:, None, :]
        return found & (self.group < self.number)[:, :, None]

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """What is known of samples, [B, ...], for each of their groups: [B K, ...]."""
        return values if self.number == 1 else values.repeat_interleave(self.number, dim=0)

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        """What each group says of its tokens, [B K, S], as [B, S]; slots of no group get what the last group says."""
        by_group = values.view(*self.keep.shape, -1)
        return by_group.gather(1, self.group.clamp(max=self.number - 1)[:, None])[:, 0]


def part_of(keep: torch.Tensor, share: float) -> torch.Tensor:
    """``share`` of each count, rounded, halves upwards: int64, never more than the count."""
    return torch.floor(keep * share + 0.5).to(torch.int64).clamp(max=keep)


def highest(scores: torch.Tensor, among: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mark the ``counts`` [G] slots with the highest ``scores`` [G, S] ``among`` [G, S]; ties to the earlier."""
    return least_redundant(-scores, among, counts)
