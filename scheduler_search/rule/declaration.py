"""The value types of a rule: its declaration, one parameter of it, and the rule with every parameter written out."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from scheduler_search.errors import RuleError

ParameterValue = str | int | float | bool
Place = Literal["vision", "entry", "decoder"]
QueryRows = Literal["instruction", "last", "all", "last-vision", "vision", "every", "raters", "class"]
HeadReduction = Literal["mean", "max", "sum"]

# In the order in which tokens pass them.
PLACES: tuple[Place, ...] = ("vision", "entry", "decoder")


@dataclass(frozen=True)
class Reads:
    """What the stages of a rule look at, beside the hidden states: the runtime computes this and nothing more.

    In the decoder and in the tower, attention and keys are those of the layer before the reduction; at the entry they
    are those of the tower layer ``tower_layer``.

    Args:
        rows: whose attention is read: the text after the last image (``instruction``), the last prompt token
            (``last``), every text token (``all``), the last vision token, every vision token, ``every`` token of both
            kinds, the ``raters`` of SparseVLM, or the ``class`` token of the tower; None for no attention.
        heads: how the heads of a row are combined.
        matrix: whether each row is wanted by itself (``Tokens.rows``), not only their mean (``Tokens.attention``).
        own_layer: in the decoder, whether attention and keys are those of the layer behind the reduction, projected
            from the hidden states in front of it (PyramidDrop), instead of the layer before.
        keys: ``Tokens.keys``.
        sizes: ``Tokens.sizes``: how many patches each token stands for; the tower's attention is then proportional.
        grids: ``Prompt.grids``.
        images: ``Prompt.images``.
        ids: ``Prompt.input_ids``, so that embeddings alone do not do.
        text: ``Tokens.text``, features of the question to compare vision tokens with.
        tower_layer: layer of the tower whose attention and keys are read at the entry; -1 is the last, None the one
            whose features the decoder gets (the last but one in LLaVA, whose features the papers take).
    """

    rows: QueryRows | None = None
    heads: HeadReduction = "mean"
    matrix: bool = False
    own_layer: bool = False
    keys: bool = False
    sizes: bool = False
    grids: bool = False
    images: bool = False
    ids: bool = False
    text: bool = False
    tower_layer: int | None = None

    @property
    def layer(self) -> bool:
        """Whether anything of an attention layer is read."""
        return self.rows is not None or self.keys

    @property
    def layer_before(self) -> bool:
        """Whether that layer is the one before the reduction."""
        return self.layer and not self.own_layer


# Of a whole number without another bound: its square is still one that tensors hold.
_MOST_WHOLE = 2**31 - 1


@dataclass(frozen=True)
class Parameter:
    """One parameter of a rule: its default, which also fixes its type, and the values that are allowed.

    ``choices`` lists every allowed value; without it a number lies in [low, high], and a whole one below 2^31.
    """

    name: str
    default: ParameterValue
    meaning: str
    choices: tuple[ParameterValue, ...] | None = None
    low: float | None = None
    high: float | None = None

    def check(self, value: ParameterValue, rule: str) -> ParameterValue:
        """Return ``value``, or raise RuleError naming what is allowed; a bool is never taken for a number."""
        place = f"rule {rule!r}, parameter {self.name!r}"
        if type(value) is not type(self.default):
            kind = type(self.default).__name__
            remedy = f"write {value}.0" if kind == "float" and type(value) is int else None
            raise RuleError(f"the parameter must be of type {kind}", actual=repr(value), place=place, remedy=remedy)
        if self.choices is not None and value not in self.choices:
            allowed = ", ".join(repr(choice) for choice in self.choices)
            raise RuleError(f"the parameter must be one of {allowed}", actual=repr(value), place=place)
        if not isinstance(value, str | bool):
            self._check_range(value, place)
        return value

    def _check_range(self, value: float, place: str) -> None:
        if self.low is not None and not value >= self.low:
            raise RuleError(f"the parameter must be at least {self.low}", actual=value, place=place)
        high = _MOST_WHOLE if self.high is None and isinstance(value, int) else self.high
        if high is not None and not value <= high:
            raise RuleError(f"the parameter must be at most {high}", actual=value, place=place)


@dataclass(frozen=True)
class Rule:
    """A named, versioned token reducer with every parameter written out; equal rules choose equal tokens."""

    name: str
    version: int
    parameters: tuple[tuple[str, ParameterValue], ...]

    def parameter(self, name: str) -> ParameterValue:
        """Value of one parameter; KeyError if the rule has none of that name."""
        return dict(self.parameters)[name]

    def number(self, name: str) -> float:
        """Value of a numeric parameter."""
        return float(self.parameter(name))

    def whole(self, name: str) -> int:
        """Value of a whole-number parameter."""
        return int(self.parameter(name))

    def text(self, name: str) -> str:
        """Value of a parameter that is a text."""
        return str(self.parameter(name))

    def to_document(self) -> dict[str, object]:
        """The JSON object of the rule in a schedule document."""
        return {"name": self.name, "version": self.version, "parameters": dict(self.parameters)}


def _reads_nothing(_rule: Rule) -> Reads:
    return Reads()


@dataclass(frozen=True)
class Stages:
    """A rule at one place, as data: which filter, which correlate, which compress, and what they read.

    Stages are named ``module.function``, a function of ``scheduler_search.reducers``: the runtime imports them when the
    rule is applied. Without ``correlate`` the rule prunes: nothing of the dropped tokens is left.

    Args:
        filter: gives every vision token a redundancy.
        correlate: gives the matrix of how much of each dropped token could go into each kept one.
        compress: turns that matrix into the weights with which tokens enter the kept ones.
        reads: what the stages look at, under the parameters of a rule.
        halves: whether a layer's tokens can go into one another only by half, so that larger drops take several rounds.
    """

    filter: str
    correlate: str | None = None
    compress: str | None = None
    reads: Callable[[Rule], Reads] = field(default=_reads_nothing, compare=False)
    halves: bool = False

    def __post_init__(self) -> None:
        """Refuse half of a merge."""
        if (self.correlate is None) != (self.compress is None):
            raise RuleError("correlate and compress come together", actual=f"{self.correlate} and {self.compress}")


@dataclass(frozen=True)
class Declaration:
    """What a rule is called, its stages at each place where it acts, what can be set, and who published it.

    Args:
        stages: of each place; ``entry`` is between the vision tower and the first decoder layer.
        source: paper, section and equation.
        follows: where the published code differs from the paper, and which of the two this is; empty if they agree.
        default_places: where a study uses the rule when its ``[rule]`` section names no place; left out, the first of
            decoder, entry and tower at which the rule acts.

    Raises:
        RuleError: a default place at which the rule has no stages.
    """

    name: str
    version: int
    stages: Mapping[Place, Stages]
    parameters: tuple[Parameter, ...]
    source: str
    follows: str = ""
    default_places: tuple[Place, ...] = ()

    def __post_init__(self) -> None:
        """Put the default places in order, and refuse one without stages."""
        for place in self.default_places:
            if place not in self.stages:
                actual = f"{place!r} of rule {self.name!r}"
                raise RuleError("a default place of a rule must be one where it acts", actual=actual)
        chosen = self.default_places or self.places[-1:]
        object.__setattr__(self, "default_places", tuple(place for place in PLACES if place in chosen))

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the rule acts, in the order in which tokens pass."""
        return tuple(place for place in PLACES if place in self.stages)

    def rule(self, parameters: Mapping[str, ParameterValue]) -> Rule:
        """The rule with ``parameters`` set and all others at their defaults; RuleError for an unknown name or value."""
        known = {parameter.name for parameter in self.parameters}
        for name in sorted(set(parameters) - known):
            allowed = ", ".join(sorted(known)) or "none"
            raise RuleError(
                f"a rule takes only its declared parameters ({allowed})",
                actual=repr(name),
                place=f"rule {self.name!r}",
                remedy=nearest(name, known),
            )
        values = tuple(
            (parameter.name, parameter.check(parameters.get(parameter.name, parameter.default), self.name))
            for parameter in sorted(self.parameters, key=lambda parameter: parameter.name)
        )
        return Rule(self.name, self.version, values)


def nearest(name: str, known: Collection[str]) -> str | None:
    """The remedy for a misspelt name: the nearest known one, None if none is near."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {near[0]!r}?" if near else None
