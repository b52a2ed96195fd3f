"""Torch-free declarations of the token-reduction rules: what can be named in a schedule, and what its parameters mean.

Knows: names, versions, parameters with their defaults and choices, and, for each place where a rule acts, the names of
its three stages and what they read; and its source. Does not know: tensors. The code behind a stage is a function of
``scheduler_search.reducers``; the runtime imports it.
"""

from scheduler_search.rule.catalogue.common import shrinks_images
from scheduler_search.rule.declaration import (
    PLACES,
    Declaration,
    HeadReduction,
    Parameter,
    ParameterValue,
    Place,
    QueryRows,
    Reads,
    Rule,
    Stages,
)
from scheduler_search.rule.registry import declaration_of, declarations, make_rule, versions_of

__all__ = [
    "PLACES",
    "Declaration",
    "HeadReduction",
    "Parameter",
    "ParameterValue",
    "Place",
    "QueryRows",
    "Reads",
    "Rule",
    "Stages",
    "declaration_of",
    "declarations",
    "make_rule",
    "shrinks_images",
    "versions_of",
]
