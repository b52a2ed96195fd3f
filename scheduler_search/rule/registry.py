"""The rules that exist, by name and version. A new rule is one file in ``catalogue`` and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from scheduler_search.errors import RuleError
from scheduler_search.rule import catalogue
from scheduler_search.rule.declaration import Declaration, ParameterValue, Rule, nearest

# The files of the catalogue; every declaration in one of them is a rule. A version that schedules may name stays there
# for ever; of one name, the newest is what a study gets.
_FILES = (
    "attention",
    "dart",
    "entry",
    "evit",
    "ficoco",
    "mustdrop",
    "plain",
    "sparsevlm",
    "tome",
    "visiontrim",
)


def _declared(file: str) -> Iterator[Declaration]:
    module = importlib.import_module(f"{catalogue.__name__}.{file}")
    return (value for value in vars(module).values() if isinstance(value, Declaration))


def _by_name_and_version(files: tuple[str, ...]) -> dict[str, dict[int, Declaration]]:
    found: dict[str, dict[int, Declaration]] = {}
    for declaration in (one for file in files for one in _declared(file)):
        versions = found.setdefault(declaration.name, {})
        if declaration.version in versions:
            actual = f"{declaration.name!r} version {declaration.version} twice"
            raise RuleError("a name and version must be declared once", actual=actual)
        versions[declaration.version] = declaration
    return found


_VERSIONS = _by_name_and_version(_FILES)


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
