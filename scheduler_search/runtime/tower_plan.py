"""What a schedule asks of a vision tower, decided before any image is seen: counts of its layers, and what is read.

Knows: rules, keep rates, and the tower's modules. Does not know: tensors, or hooks (``tower``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from scheduler_search.reducers import Reducer
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import Reads, Rule
from scheduler_search.runtime.families import Family
from scheduler_search.runtime.families.tower import Tower
from scheduler_search.runtime.question import QuestionEncoder, check_encoder
from scheduler_search.runtime.refusals import check_entry_rule, check_tower_rates, check_tower_rule
from scheduler_search.runtime.report import TowerLayerReport
from scheduler_search.schedule.counts import keep_counts
from scheduler_search.schedule.values import VisionReduction


@dataclass(frozen=True)
class TowerPlan:
    """What every run of a tower does, the same for all images.

    Args:
        wanted: what entry rules read of it, ``tower_layer`` counted from 0.
        counts: patches of each image at the input of each layer.
        reducer: the rule that drops or merges them; None if all counts are P.
        encoder: brings patches into the space of questions, where that is wanted.
    """

    tower: Tower
    wanted: tuple[Reads, ...]
    counts: tuple[int, ...]
    reducer: Reducer | None = None
    encoder: QuestionEncoder | None = None

    def before(self, layer: int) -> int:
        """Patches of an image that arrive at a layer, before its own reduction."""
        return self.counts[layer - 1] if layer else self.tower.patches

    def reduces_at(self, layer: int) -> bool:
        """Whether images lose patches in front of this layer."""
        return layer < len(self.counts) and self.counts[layer] != self.before(layer)

    @property
    def reduces(self) -> bool:
        """Whether anything is dropped at all."""
        return self.counts[-1] != self.tower.patches

    @property
    def report(self) -> tuple[TowerLayerReport, ...]:
        """What enters each layer; nothing where the tower is whole."""
        classes, counts = self.tower.class_tokens, enumerate(self.counts if self.reduces else (), start=1)
        return tuple(TowerLayerReport(layer, count + classes, count) for layer, count in counts)

    @property
    def reads(self) -> Reads:
        """What the reductions look at."""
        return Reads() if self.reducer is None else self.reducer.reads

    @property
    def entered(self) -> tuple[int, ...]:
        """Layers (0-based) whose input is changed."""
        layers = range(len(self.counts))
        return tuple(k for k in layers if self.reduces_at(k) or (self.reads.sizes and self.before(k) < self.counts[0]))

    @property
    def listened(self) -> tuple[int, ...]:
        """Layers (0-based) whose attention is read."""
        ranks = {k - 1 for k in range(1, len(self.counts)) if self.reads.layer and self.reduces_at(k)}
        asked = {reads.tower_layer for reads in self.wanted if reads.layer and reads.tower_layer is not None}
        return tuple(sorted(ranks | asked))


def plan_tower(
    model: nn.Module,
    family: Family,
    vision: VisionReduction | None,
    wanted: tuple[Reads, ...],
    encoder: QuestionEncoder | None = None,
) -> TowerPlan | None:
    """What is done to, and read of, the tower; None for nothing.

    Args:
        wanted: what an entry rule reads, as ``entry_reads`` gives it.
        encoder: of questions; needed where rules compare patches with them.

    Raises:
        UnsupportedError: a tower, rates or a rule that cannot be served.
    """
    if vision is None and not wanted:
        return None
    tower = family.vision_tower(model)
    if any(reads.text for reads in wanted):
        check_encoder(encoder, tower)
    if vision is None:
        return TowerPlan(tower, wanted, (tower.patches,) * len(tower.layers), encoder=encoder)
    check_tower_rates(tower, vision.keep_rates, family.architecture)
    reducer = load_reducer(vision.rule, "vision")
    check_tower_rule(tower, reducer.reads, vision.rule.name)
    plan = TowerPlan(tower, wanted, keep_counts(vision.keep_rates, tower.patches), reducer, encoder)
    return plan if plan.reduces or wanted else None


def entry_reads(model: nn.Module, family: Family, entry: Rule | None) -> tuple[Reads, ...]:
    """What an entry rule reads of the tower, if anything: the one form of all that read the same.

    Raises:
        UnsupportedError: a tower that does not have what the rule reads.
    """
    reads = None if entry is None else load_reducer(entry, "entry").reads
    if entry is None or reads is None or not (reads.layer or reads.text):
        return ()
    tower = family.vision_tower(model)
    check_entry_rule(tower, reads, entry.name)
    layer = tower.used_layers - 1 if reads.tower_layer is None else reads.tower_layer % len(tower.layers)
    views = Reads(rows=reads.rows, heads=reads.heads, matrix=reads.matrix, keys=reads.keys, tower_layer=layer)
    return (replace(views, text=reads.text),)
