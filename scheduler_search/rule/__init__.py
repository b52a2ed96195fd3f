"""Torch-free declarations of the token-reduction rules: what can be named in a schedule, and what its parameters mean.

Knows: names, versions, parameters with their defaults and choices, the place where a rule acts, and its source. Does
not know: tensors. The code behind a rule is named by ``Declaration.implementation``; the runtime imports it.
"""

from scheduler_search.rule.declaration import Declaration, Parameter, ParameterValue, Place, Rule
from scheduler_search.rule.registry import declaration_of, declarations, make_rule

__all__ = [
    "Declaration",
    "Parameter",
    "ParameterValue",
    "Place",
    "Rule",
    "declaration_of",
    "declarations",
    "make_rule",
]
