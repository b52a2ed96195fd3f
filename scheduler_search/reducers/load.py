"""From the name of a rule to its code."""

from __future__ import annotations

import importlib
from typing import Any

from scheduler_search.reducers.reducer import Reducer
from scheduler_search.rule import Place, Rule, declaration_of

_PACKAGE = __name__.rpartition(".")[0]


def load_reducer(rule: Rule, place: Place) -> Reducer:
    """The reducer that a rule's declaration names for a place; RuleError for an unknown rule or version.

    KeyError for a place where the rule does not act: no reduction can hold such a rule.
    """
    stages = declaration_of(rule.name, rule.version).stages[place]
    return Reducer(
        rule=rule,
        reads=stages.reads(rule),
        filter=_function(stages.filter),
        correlate=None if stages.correlate is None else _function(stages.correlate),
        compress=None if stages.compress is None else _function(stages.compress),
        halves=stages.halves,
    )


def _function(name: str) -> Any:
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"{_PACKAGE}.{module}"), function)
