"""Where on the way of the vision tokens keep rates are decided: layers of the tower, the entry, decoder layers.

Knows: the order of these sites, what a stage at one is called, and which rates follow from decisions. Does not know:
candidates, scores or costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from scheduler_search.errors import SearchError
from scheduler_search.rule import Place
from scheduler_search.schedule.cost import VisionShape
from scheduler_search.schedule.families import free
from scheduler_search.study.search_section import SearchSection


@dataclass(frozen=True)
class Site:
    """One place where tokens can be dropped.

    Args:
        name: of its stage.
        position: 1-based place in the rates of a decision: tower layers first, then decoder layers.
    """

    name: str
    place: Place
    position: int


@dataclass(frozen=True)
class TowerLayers:
    """The searched layers of a vision tower.

    Args:
        layers: of the tower, all of them.
        used_layers: whose output reaches the decoder; those behind hold the last rate.
        first_layer: first searched layer, 1-based.
        tokens: patches of one image, of which a tower layer keeps a share.
    """

    layers: int
    used_layers: int
    first_layer: int
    stride: int
    tokens: int

    @classmethod
    def of(cls, shape: VisionShape | None, search: SearchSection, max_vision_tokens: int) -> TowerLayers:
        """Those that a study asks for.

        Raises:
            SearchError: the model has no vision tower, or one that is too short.
        """
        if shape is None:
            raise SearchError("a rule inside the vision tower needs a model with one", place="[rule] at")
        assert search.vision_first_layer is not None  # the definition gives both where the rule acts in the tower
        assert search.vision_stride is not None
        used = shape.layers if shape.used_layers is None else shape.used_layers
        if search.vision_first_layer > used:
            rule = f"vision_first_layer must be at most {used}, the layers of the tower that the projector is behind"
            raise SearchError(rule, actual=search.vision_first_layer)
        tokens = max_vision_tokens if shape.native else shape.patches
        return cls(shape.layers, used, search.vision_first_layer, search.vision_stride, tokens)


@dataclass(frozen=True)
class Sites:
    """The sites of a search in the order in which tokens pass them.

    Args:
        places: where the rule acts.
        layers: L, decoder layers.
        first_layer: first searched decoder layer, 1-based; every ``stride`` layers another one is.
        tower: None where the rule does not act in it.
    """

    places: tuple[Place, ...]
    layers: int
    first_layer: int
    stride: int
    tower: TowerLayers | None = None

    @property
    def tower_layers(self) -> int:
        """How many of the rates are of tower layers."""
        return 0 if self.tower is None else self.tower.layers

    @property
    def total(self) -> int:
        """Number of rates."""
        return self.tower_layers + self.layers

    @cached_property
    def all(self) -> tuple[Site, ...]:
        """Every site that gets a stage, unless an earlier one has removed every token."""
        found = [Site(f"tower-{layer:02d}", "vision", layer) for layer in self._searched_tower()]
        if "entry" in self.places:
            found.append(Site("entry", "entry", self.tower_layers + 1))
        if "decoder" in self.places:
            layers = range(self.first_layer, self.layers + 1, self.stride)
            found += [Site(f"layer-{layer:02d}", "decoder", self.tower_layers + layer) for layer in layers]
        return tuple(found)

    def _searched_tower(self) -> Sequence[int]:
        tower = self.tower
        return () if tower is None else range(tower.first_layer, tower.used_layers + 1, tower.stride)

    def depth(self, site: Site) -> float:
        """How far the tokens have come there, in (0, 1]."""
        return site.position / self.total

    def rates(self, values: Sequence[float]) -> tuple[float, ...]:
        """Rates of all layers under the first decided ``values``, each held until the next."""
        return free(self.total, {site.position: value for site, value in zip(self.all, values, strict=False)})
