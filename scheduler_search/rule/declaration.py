"""The value types of a rule: its declaration, one parameter of it, and the rule with every parameter written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scheduler_search.errors import RuleError

ParameterValue = str | int | float | bool
Place = Literal["vision", "entry", "decoder"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a rule: its default, which also fixes its type, and the values that are allowed.

    ``choices`` lists every allowed value; without it a number lies in [low, high].
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
            raise RuleError(f"the parameter must be of type {kind}", actual=repr(value), place=place)
        if self.choices is not None and value not in self.choices:
            allowed = ", ".join(repr(choice) for choice in self.choices)
            raise RuleError(f"the parameter must be one of {allowed}", actual=repr(value), place=place)
        if not isinstance(value, str | bool):
            self._check_range(value, place)
        return value

    def _check_range(self, value: float, place: str) -> None:
        if self.low is not None and not value >= self.low:
            raise RuleError(f"the parameter must be at least {self.low}", actual=value, place=place)
        if self.high is not None and not value <= self.high:
            raise RuleError(f"the parameter must be at most {self.high}", actual=value, place=place)


@dataclass(frozen=True)
class Rule:
    """A named, versioned token reducer with every parameter written out; equal rules choose equal tokens."""

    name: str
    version: int
    parameters: tuple[tuple[str, ParameterValue], ...]

    def parameter(self, name: str) -> ParameterValue:
        """Value of one parameter; KeyError if the rule has none of that name."""
        return dict(self.parameters)[name]

    def to_document(self) -> dict[str, object]:
        """The JSON object of the rule in a schedule document."""
        return {"name": self.name, "version": self.version, "parameters": dict(self.parameters)}


@dataclass(frozen=True)
class Declaration:
    """What a rule is called, where it acts, what can be set, who published it, and which class implements it.

    Args:
        places: where the rule can act; ``entry`` is between the vision tower and the first decoder layer.
        needs_attention: whether it reads the attention of the layer before the reduction.
        implementation: ``module:Class``, imported by the runtime when the rule is applied.
    """

    name: str
    version: int
    places: frozenset[Place]
    parameters: tuple[Parameter, ...]
    needs_attention: bool
    implementation: str
    source: str

    def rule(self, parameters: Mapping[str, ParameterValue]) -> Rule:
        """The rule with ``parameters`` set and all others at their defaults; RuleError for an unknown name or value."""
        known = {parameter.name for parameter in self.parameters}
        for name in sorted(set(parameters) - known):
            allowed = ", ".join(sorted(known)) or "none"
            raise RuleError(
                f"a rule takes only its declared parameters ({allowed})", actual=repr(name), place=f"rule {self.name!r}"
            )
        values = tuple(
            (parameter.name, parameter.check(parameters.get(parameter.name, parameter.default), self.name))
            for parameter in sorted(self.parameters, key=lambda parameter: parameter.name)
        )
        return Rule(self.name, self.version, values)
