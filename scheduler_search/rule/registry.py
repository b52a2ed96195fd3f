"""The rules that exist, by name and version. A new rule is one file in ``catalogue`` and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler_search.errors import RuleError
from scheduler_search.rule.catalogue import (
    attention,
    dart,
    entry,
    evit,
    ficoco,
    mustdrop,
    plain,
    sparsevlm,
    tome,
    visiontrim,
)
from scheduler_search.rule.declaration import Declaration, ParameterValue, Rule, nearest

# A version that schedules may name stays here for ever; of one name, the last is what a study gets.
_ALL = (
    attention.ATTENTION_RANK,
    attention.FASTV_1,
    attention.FASTV,
    attention.FASTV_REVERSE,
    attention.FASTV_VISION,
    attention.FASTV_WINDOW,
    attention.IMPORTANCE_REDUNDANCY,
    attention.PYRAMID_DROP,
    attention.VTW,
    dart.DART,
    entry.DOWNSAMPLE,
    entry.FASTERVLM,
    entry.VISIONZIP,
    entry.PRUMERGE,
    entry.DIVPRUNE,
    entry.CDPRUNER,
    evit.EVIT,
    ficoco.FICOCO_V,
    ficoco.FICOCO_L,
    ficoco.FICOCO_VL,
    mustdrop.MUSTDROP,
    plain.RANDOM,
    plain.POOLING,
    sparsevlm.SPARSEVLM,
    tome.TOME,
    visiontrim.VISIONTRIM,
    visiontrim.VISIONTRIM_DECODER,
)

_VERSIONS: dict[str, dict[int, Declaration]] = {}
for _declaration in _ALL:
    _VERSIONS.setdefault(_declaration.name, {})[_declaration.version] = _declaration


def declarations() -> tuple[Declaration, ...]:
    """The newest version of every declared rule, by name."""
    return tuple(declaration_of(name) for name in sorted(_VERSIONS))


def declaration_of(name: str, version: int | None = None) -> Declaration:
    """The declaration of a rule, the newest by default; RuleError with the nearest name, or with the known versions."""
    versions = _VERSIONS.get(name)
    if versions is None:
        remedy = nearest(name, _VERSIONS) or f"known rules: {', '.join(sorted(_VERSIONS))}"
        raise RuleError("a rule must be a known one", actual=repr(name), remedy=remedy)
    if version is not None and version not in versions:
        known = " and ".join(str(one) for one in sorted(versions))
        raise RuleError(f"rule {name!r} is known in version {known}", actual=f"version {version}")
    return versions[max(versions) if version is None else version]


def versions_of(name: str) -> tuple[int, ...]:
    """The versions of a rule that schedules may name, the newest last; RuleError as from ``declaration_of``."""
    return tuple(sorted(_VERSIONS[declaration_of(name).name]))


def make_rule(name: str, parameters: Mapping[str, ParameterValue] | None = None, *, version: int | None = None) -> Rule:
    """A rule by name, with defaults written out.

    Raises:
        RuleError: unknown name, version, parameter or value.
    """
    return declaration_of(name, version).rule(parameters or {})
