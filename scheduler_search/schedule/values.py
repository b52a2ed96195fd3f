"""The values of a schedule: the model it is for, what is executed, and both together.

Knows: which keep rates and rules can form a schedule. Does not know: JSON (``document``), tensors, or how the rates
were found.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler_search.rule import Rule


@dataclass(frozen=True)
class ModelIdentity:
    """The model a schedule is for. ``id`` is a hub id or a directory's name, never a path.

    ``config_digest`` covers the shape-giving fields of the configuration, not paths or library versions.
    """

    id: str
    revision: str
    architecture: str
    decoder_layers: int
    vision_layers: int
    config_digest: str


@dataclass(frozen=True)
class VisionReduction:
    """Keep rates of the vision-tower layers and the rule that executes them."""

    keep_rates: tuple[float, ...]
    rule: Rule


@dataclass(frozen=True)
class Reduction:
    """What the runtime executes: keep rates of all L decoder layers (non-increasing) and the rules.

    ``keep_rates[i]`` is the share of the original vision tokens at the input of the decoder layer with 0-based index i.
    ``entry_rule`` acts before the first decoder layer and is needed where ``keep_rates[0] < 1``.
    """

    keep_rates: tuple[float, ...]
    rule: Rule
    entry_rule: Rule | None = None
    vision: VisionReduction | None = None


@dataclass(frozen=True)
class Schedule:
    """A reduction frozen for one model; equal schedules have equal ``digest`` wherever they came from."""

    model: ModelIdentity
    reduction: Reduction
