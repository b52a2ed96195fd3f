"""From the name of a rule to its code."""

from __future__ import annotations

import importlib

from scheduler_search.reducers import Reducer
from scheduler_search.rule import Rule, declaration_of


def load_reducer(rule: Rule) -> Reducer:
    """The reducer that a rule's declaration names; RuleError for an unknown rule or version."""
    module, _, name = declaration_of(rule.name, rule.version).implementation.partition(":")
    reducer: Reducer = getattr(importlib.import_module(module), name)(rule)
    return reducer
