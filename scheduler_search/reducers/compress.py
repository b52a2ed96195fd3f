"""From how sources relate to targets, to the weights with which they enter them: compress stages that rules share."""

from __future__ import annotations

import torch

from scheduler_search.reducers.tokens import Tokens
from scheduler_search.rule import Rule


def given(_tokens: Tokens, _kept: torch.Tensor, correlation: torch.Tensor, _rule: Rule) -> torch.Tensor:
    """W is C: the correlation has the weights in it, those of the targets in themselves too."""
    return correlation
