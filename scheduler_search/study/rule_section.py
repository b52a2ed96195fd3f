"""The ``[rule]`` and ``[entry_rule]`` sections of a study file: which rule, with which parameters, at which places.

Knows: the keys that are the section's own; that every other key is a parameter of the rule; and which places a rule
may be searched at. Does not know: what a rule does, or how a search over a place goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, model_serializer, model_validator

from scheduler_search.rule import PLACES, Declaration, ParameterValue, Place, Rule, declaration_of, make_rule
from scheduler_search.rule.declaration import nearest
from scheduler_search.study.section import Section, broken

Text = Annotated[str, Field(min_length=1)]

# What ``from_json`` says to the section: a definition that names no version is from when every rule had one.
RECORDED = {"recorded": True}

_OWN = ("name", "version", "at")


class RuleSection(Section):
    """The rule by name; every other key of the section is one of its parameters, kept as written.

    Args:
        version: of the rule; by default the newest there is when the study file is read.
        at: where the rule acts, in the order in which tokens pass; empty for the default places of the rule.
    """

    name: Text = "attention-rank"
    version: int = Field(default_factory=lambda: 1, ge=1)
    at: tuple[Place, ...] = ()
    parameters: tuple[tuple[str, ParameterValue], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _gather_parameters(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, Mapping):
            return data
        given = {str(key): value for key, value in data.items() if key not in _OWN}
        for key, value in given.items():
            if not isinstance(value, str | int | float):
                raise broken("a rule parameter must be a string, a number or a boolean", key=key, actual=repr(value))
            if isinstance(value, float) and not math.isfinite(value):
                raise broken("a rule parameter must be a finite number", key=key, actual=repr(value))
        name = data.get("name", cls.model_fields["name"].default)
        own = {key: data[key] for key in ("name", "version") if key in data}
        if isinstance(name, str) and name:
            own.setdefault("version", 1 if info.context == RECORDED else declaration_of(name).version)
            if "at" in data and type(own["version"]) is int:
                own["at"] = _places(data["at"], declaration_of(name, own["version"]))
        return {**own, "parameters": tuple(sorted(given.items()))}

    @model_serializer
    def _write_as_read(self) -> dict[str, Any]:
        version = {} if self.version == 1 else {"version": self.version}
        at = {"at": list(self.at)} if self.at else {}
        return {"name": self.name, **version, **at, **dict(self.parameters)}

    @model_validator(mode="after")
    def _is_declared(self) -> Self:
        self.resolve(0)
        return self

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the rule acts, in the order in which tokens pass."""
        return self.at or declaration_of(self.name, self.version).default_places

    @property
    def asks_encoder(self) -> bool:
        """Whether it compares patches with what a text encoder makes of the question, at one of its places."""
        stages, rule = declaration_of(self.name, self.version).stages, self.resolve(0)
        return any(stages[place].reads(rule).text for place in self.places)

    def resolve(self, seed: int) -> Rule:
        """The rule with all parameters written out; a ``seed`` parameter that is not given is the study's seed."""
        given = dict(self.parameters)
        if any(parameter.name == "seed" for parameter in declaration_of(self.name, self.version).parameters):
            given.setdefault("seed", seed)
        return make_rule(self.name, given, version=self.version)


class EntryRuleSection(RuleSection):
    """Another rule between tower and decoder, so that the study's rule goes on with what it leaves."""

    name: Text

    @model_validator(mode="before")
    @classmethod
    def _acts_at_the_entry(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "at" in data:
            raise broken("an entry rule acts at the entry", key="at", actual=repr(data["at"])[:60], remedy="remove it")
        return data

    @model_validator(mode="after")
    def _can_act_there(self) -> Self:
        declaration = declaration_of(self.name, self.version)
        if "entry" not in declaration.places:
            rule = f"rule {self.name!r} acts only at {' and '.join(declaration.places)}"
            remedy = "rules and their places: scheduler-search rules"
            raise broken(rule, key="name", actual="it as the entry rule", remedy=remedy)
        return self

    @property
    def places(self) -> tuple[Place, ...]:
        """The entry."""
        return ("entry",)


def _places(value: object, declaration: Declaration) -> tuple[Place, ...]:
    """The places that ``at`` names, in order.

    None where they are the rule's default: spelling out a default does not make another study.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(one, str) for one in names):
        raise broken("at is the name of a place, or a list of them", key="at", actual=repr(value)[:60])
    for one in names:
        if one not in PLACES:
            remedy = nearest(one, PLACES) or f"places: {', '.join(PLACES)}"
            raise broken("a place must be a known one", key="at", actual=repr(one)[:60], remedy=remedy)
        if one not in declaration.places:
            acts = " and ".join(declaration.places)
            remedy = "rules and their places: scheduler-search rules"
            raise broken(f"rule {declaration.name!r} acts only at {acts}", key="at", actual=repr(one), remedy=remedy)
        if list(names).count(one) > 1:
            raise broken("a place is named once", key="at", actual=repr(names), remedy="remove the second one")
    chosen = tuple(place for place in PLACES if place in names)
    return () if chosen == declaration.default_places else chosen
