"""The ``[search]`` section of a study file: algorithm, objective, penalty or budget, and what a search may save.

Knows: which keys belong to which algorithm, and the defaults that follow from it. Does not know: how a search runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from scheduler_search.rule import Place
from scheduler_search.study.section import Positive, Section, broken


class FlopsBudget(Section):
    """A budget as mean prefill TFLOPs per sample of the search split."""

    tflops: Annotated[float, Field(gt=0)]


class ScheduleBudget(Section):
    """The FLOPs of another schedule as budget: ``step(layer, keep)`` or ``uniform(keep)``."""

    family: Annotated[Literal["step", "uniform"], Field(alias="as")]
    layer: Positive | None = None
    keep: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _layer_belongs_to_step(self) -> Self:
        if self.family == "step" and self.layer is None:
            raise broken('a budget as = "step" needs the layer after which tokens are dropped', key="layer")
        if self.family == "uniform" and self.layer is not None:
            raise broken('a budget as = "uniform" takes no layer', key="layer", actual=str(self.layer))
        return self


def _budget_kind(value: object) -> str | None:
    if isinstance(value, FlopsBudget) or (isinstance(value, Mapping) and "tflops" in value):
        return FlopsBudget.__name__
    if isinstance(value, ScheduleBudget) or (isinstance(value, Mapping) and "as" in value):
        return ScheduleBudget.__name__
    return None if isinstance(value, Mapping) else "plain"


def _plain_or(table: type[Section]) -> Discriminator:
    """Whether a value is one of ``table`` or not, so that only one of the two complains."""
    return Discriminator(lambda value: table.__name__ if isinstance(value, Mapping | table) else "plain")


Budget = Annotated[
    Annotated[float, Field(gt=0, le=1), Tag("plain")]
    | Annotated[FlopsBudget, Tag("FlopsBudget")]
    | Annotated[ScheduleBudget, Tag("ScheduleBudget")],
    Discriminator(
        _budget_kind,
        custom_error_type="study_budget",
        custom_error_message="a budget is a mean keep rate in (0, 1], or a table with tflops = ... or with as = ...",
    ),
]


class FlopsPenalty(Section):
    """A penalty per mean prefill TFLOP of the whole schedule over the search split."""

    tflop: Annotated[float, Field(ge=0)]


class WeightedObjective(Section):
    """``fidelity`` times the agreement with the unreduced model, and the rest of 1 times the metric."""

    fidelity: Annotated[float, Field(gt=0, lt=1)]


Penalty = Annotated[
    Annotated[float, Field(ge=0), Tag("plain")] | Annotated[FlopsPenalty, Tag("FlopsPenalty")], _plain_or(FlopsPenalty)
]
Objective = Annotated[
    Annotated[Literal["score", "fidelity"], Tag("plain")] | Annotated[WeightedObjective, Tag("WeightedObjective")],
    _plain_or(WeightedObjective),
]

_ONLY_FOR = {
    "stride": ("g-search", "it searches one parameter for all layers together"),
    "refine": ("g-search", "it searches one parameter for all layers together"),
    "penalty": ("g-search", "a candidate's cost is known before it is scored"),
    "budget": ("p-sigmoid", "its budget follows from the search"),
}

# What a study gets that names none of it. Beside these, seed 003's own procedure tries everything to the end.
_FAITHFUL = {"initial": 10, "race_delta": 0.0, "tolerance": 0.0, "refine": False}
_SPARING: dict[str, dict[str, Any]] = {
    "g-search": {"initial": 2, "tolerance": 0.001},  # of each of its many stages
    "p-sigmoid": {"initial": 3, "tolerance": 0.002},
    "frontier": {"initial": 12, "tolerance": 0.001},
}
# Of a tower that is searched: the first layer that can know which tokens matter, since nothing was seen in front of the
# one before it; and as many layers further, since every trial there runs the tower anew: four stages in a tower of 24.
_TOWER = {"vision_first_layer": 2, "vision_stride": 6}
_SAVINGS = {"refine": False, "race_delta": 0.0, "race_margin": 0.0, "tolerance": 0.0, "batch": 1}


class SearchSection(Section):
    """The algorithm and its settings; ``stride``, ``penalty`` and ``budget`` belong to one algorithm each.

    Args:
        vision_first_layer: of the tower, where the rule acts there; None where it does not.
        vision_stride: the same for the tower's layers.
        refine: after the layers in steps of ``stride``, each single layer is reconsidered between its neighbours.
        faithful: exactly the procedure of seed 003: every candidate is scored on every sample, stages share nothing,
            none ends early.
        race_delta: with this probability at most, the races of a stage stop its best candidate; 0 for no races.
        race_margin: a candidate must promise to beat the best one by more than this to go on in its race.
        tolerance: a stage ends where no candidate is expected to improve the objective by as much.
        batch: candidates that are asked for together; what is found depends on it, and never on who was faster.
    """

    algorithm: Literal["g-search", "p-sigmoid", "frontier"] = "g-search"
    first_layer: Annotated[int, Field(ge=2)] = 3
    stride: Positive = 3
    vision_first_layer: Annotated[int, Field(ge=2)] | None = None
    vision_stride: Positive | None = None
    refine: bool = True
    objective: Objective = "score"
    penalty: Penalty = 0.01
    faithful: bool = False
    initial: Positive = _SPARING["g-search"]["initial"]
    iterations: Annotated[int, Field(ge=0)] = 20
    sampler: Literal["expected-improvement", "random", "tpe", "gp"] = "expected-improvement"
    race_delta: Annotated[float, Field(ge=0, lt=1)] = 0.05
    race_margin: Annotated[float, Field(ge=0, le=1)] = 0.0
    tolerance: Annotated[float, Field(ge=0, le=1)] = _SPARING["g-search"]["tolerance"]
    batch: Positive = 1
    budget: Budget | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_algorithm(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if data.get("faithful") is not True:
            return {**_SPARING.get(str(data.get("algorithm")), _SPARING["g-search"]), **data}
        foreign = _foreign(str(data.get("algorithm", "g-search")))
        return {**{key: value for key, value in _FAITHFUL.items() if key not in foreign}, **data}

    @model_validator(mode="after")
    def _keys_fit_the_algorithm(self) -> Self:
        for key, (algorithm, reason) in _ONLY_FOR.items():
            if key in self.model_fields_set and algorithm != self.algorithm:
                rule = f'key "{key}" belongs to {algorithm}, not to {self.algorithm}: {reason}'
                raise broken(rule, key=key, remedy="remove the key")
        if self.algorithm == "p-sigmoid" and self.budget is None:
            raise broken("p-sigmoid needs a budget", key="budget", remedy="for example budget = 0.125")
        if self.algorithm == "frontier" and self.sampler in ("tpe", "gp"):
            rule = "a frontier has no single best candidate, which this sampler looks for"
            raise broken(rule, key="sampler", actual=self.sampler, remedy="remove the key")
        return self

    @model_validator(mode="after")
    def _a_faithful_search_saves_nothing(self) -> Self:
        if not self.faithful:
            return self
        if self.algorithm == "frontier":
            raise broken("the frontier is no procedure of seed 003", key="faithful", remedy="remove the key")
        for key, value in _SAVINGS.items():
            if key not in _foreign(self.algorithm) and getattr(self, key) != value:
                rule = f"a faithful search has {key} = {json.dumps(value)}"
                raise broken(rule, key=key, actual=json.dumps(getattr(self, key)), remedy="remove one of the two keys")
        return self

    @property
    def fidelity_weight(self) -> float:
        """Share of the fidelity in the objective, in [0, 1]; the rest is the metric's."""
        if isinstance(self.objective, WeightedObjective):
            return self.objective.fidelity
        return 1.0 if self.objective == "fidelity" else 0.0

    @property
    def penalty_value(self) -> float:
        """The number of ``penalty``, whatever it is per."""
        return self.penalty.tflop if isinstance(self.penalty, FlopsPenalty) else self.penalty

    @property
    def penalty_unit(self) -> Literal["keep-rate", "tflop"]:
        """What ``penalty`` is per."""
        return "tflop" if isinstance(self.penalty, FlopsPenalty) else "keep-rate"

    def to_document(self) -> dict[str, object]:
        """The keys that apply to the algorithm, defaults written out."""
        foreign = _foreign(self.algorithm)
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=foreign)


def _foreign(algorithm: str) -> set[str]:
    """The keys that belong to another algorithm."""
    return {key for key, (owner, _) in _ONLY_FOR.items() if owner != algorithm}


def search_at(places: tuple[Place, ...], search: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tables of a ``[search]`` section with the defaults of a search over ``places``.

    Only g-search goes over the tower or the entry, and it does without refinement there.
    """
    if "vision" not in places:
        for key in set(_TOWER) & set(search):
            rule = f'key "{key}" belongs to a rule inside the vision tower'
            raise broken(rule, key=key, actual=f"a rule at {_listed(places)}", remedy="remove the key")
    if places == ("decoder",):
        return search
    algorithm = search.get("algorithm", "g-search")
    if algorithm in _SPARING and algorithm != "g-search":
        rule = f"{algorithm} searches the layers of the decoder, and no other place"
        remedy = 'use algorithm = "g-search", or a rule that acts at decoder layers'
        raise broken(rule, key="algorithm", actual=f"a rule at {_listed(places)}", remedy=remedy)
    if search.get("refine") is True:
        rule = "only a search over the decoder alone is refined"
        raise broken(rule, key="refine", actual=f"a rule at {_listed(places)}", remedy="remove the key")
    return {"refine": False, **(_TOWER if "vision" in places else {}), **search}


def _listed(places: tuple[Place, ...]) -> str:
    return " and ".join(places)
