"""The rules that exist, by name. A new rule is one entry here and one class in ``reducers``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from scheduler_search.errors import RuleError
from scheduler_search.rule.declaration import Declaration, Parameter, ParameterValue, Rule

_HEADS = Parameter("head_reduction", "mean", "how the attention heads are combined", choices=("mean", "max", "sum"))
_PREVIOUS = Parameter("score_layer", "previous", "the layer whose attention ranks the tokens", choices=("previous",))
_KEEP_POSITIONS = Parameter("positions", "keep", "whether kept tokens keep their rotary positions", choices=("keep",))
_QUOTA = Parameter(
    "quota",
    "pooled",
    "whether the images of a sample share one ranking, or each keeps its share of the tokens and is ranked by itself",
    choices=("pooled", "per-image"),
)

_ATTENTION_RANK = Declaration(
    name="attention-rank",
    version=1,
    places=frozenset({"decoder"}),
    parameters=(
        Parameter(
            "query_rows",
            "instruction",
            "whose attention is averaged: the text after the last image, the last prompt token, or every text token",
            choices=("instruction", "last", "all"),
        ),
        _HEADS,
        _PREVIOUS,
        _KEEP_POSITIONS,
        _QUOTA,
    ),
    needs_attention=True,
    implementation="scheduler_search.reducers.attention:AttentionRank",
    source="seed 003, section 3.2 (Sort & Reduce)",
)

_FASTV = Declaration(
    name="fastv",
    version=1,
    places=frozenset({"decoder"}),
    parameters=(_HEADS, _PREVIOUS, _KEEP_POSITIONS, _QUOTA),
    needs_attention=True,
    implementation="scheduler_search.reducers.attention:LastRowRank",
    source="FastV (seed 003, reference 5): attention of the last query row, as its published code does",
)

_RANDOM = Declaration(
    name="random",
    version=1,
    places=frozenset({"decoder", "entry"}),
    parameters=(
        Parameter("seed", 0, "seed of the ranking; the sample's input ids are the other half of the key", low=0),
        _QUOTA,
    ),
    needs_attention=False,
    implementation="scheduler_search.reducers.random:RandomRank",
    source="baseline of seed 001",
)

_POOLING = Declaration(
    name="pooling",
    version=1,
    places=frozenset({"entry"}),
    parameters=(_KEEP_POSITIONS,),
    needs_attention=False,
    implementation="scheduler_search.reducers.pooling:AveragePooling",
    source="baseline of seed 001: average pooling of neighbouring patches, to the promised count",
)

_DECLARATIONS = {declaration.name: declaration for declaration in (_ATTENTION_RANK, _FASTV, _RANDOM, _POOLING)}


def declarations() -> tuple[Declaration, ...]:
    """All declared rules, by name."""
    return tuple(_DECLARATIONS[name] for name in sorted(_DECLARATIONS))


def declaration_of(name: str, version: int | None = None) -> Declaration:
    """The declaration of a rule; RuleError with the nearest name, or with the known version, where there is none."""
    declaration = _DECLARATIONS.get(name)
    if declaration is None:
        near = difflib.get_close_matches(name, _DECLARATIONS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known rules: {', '.join(sorted(_DECLARATIONS))}"
        raise RuleError("a rule must be a known one", actual=repr(name), remedy=remedy)
    if version is not None and version != declaration.version:
        raise RuleError(f"rule {name!r} is known in version {declaration.version}", actual=f"version {version}")
    return declaration


def make_rule(name: str, parameters: Mapping[str, ParameterValue] | None = None, *, version: int | None = None) -> Rule:
    """A rule by name, with defaults written out.

    Raises:
        RuleError: unknown name, version, parameter or value.
    """
    return declaration_of(name, version).rule(parameters or {})
