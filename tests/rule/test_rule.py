from __future__ import annotations

import importlib

import pytest

from scheduler_search.errors import RuleError
from scheduler_search.rule import (
    Declaration,
    Place,
    Stages,
    declaration_of,
    declarations,
    make_rule,
    registry,
    versions_of,
)


def test_defaults_are_written_out() -> None:
    rule = make_rule("attention-rank", {"head_reduction": "max"})
    assert rule.to_document() == {
        "name": "attention-rank",
        "version": 1,
        "parameters": {
            "head_reduction": "max",
            "positions": "keep",
            "query_rows": "instruction",
            "quota": "pooled",
            "score_layer": "previous",
        },
    }


def test_a_default_spelled_out_is_the_same_rule() -> None:
    assert make_rule("random", {"seed": 0}) == make_rule("random")
    assert make_rule("random", {"seed": 1}) != make_rule("random")


@pytest.mark.parametrize("declaration", declarations(), ids=lambda declaration: declaration.name)
def test_every_rule_is_implemented(declaration: Declaration) -> None:
    assert declaration.source
    assert declaration.places
    for stages in declaration.stages.values():
        for stage in (stages.filter, stages.correlate, stages.compress):
            if stage is not None:
                module, _, function = stage.partition(".")
                assert getattr(importlib.import_module(f"scheduler_search.reducers.{module}"), function).__doc__


def _declared(acts: tuple[Place, ...], default: tuple[Place, ...] = ()) -> Declaration:
    stages = dict.fromkeys(acts, Stages("random.at_random"))
    return Declaration("made-up", 1, stages, (), "this test", default_places=default)


@pytest.mark.parametrize(
    ("acts", "default", "expected"),
    [
        (("decoder", "entry", "vision"), (), ("decoder",)),
        (("entry", "vision"), (), ("entry",)),
        (("vision",), (), ("vision",)),
        (("decoder", "vision"), ("decoder", "vision"), ("vision", "decoder")),
    ],
)
def test_where_a_study_uses_a_rule_by_default(
    acts: tuple[Place, ...], default: tuple[Place, ...], expected: tuple[Place, ...]
) -> None:
    assert _declared(acts, default).default_places == expected


def test_a_default_place_without_stages() -> None:
    with pytest.raises(RuleError, match="must be one where it acts, but got 'decoder' of rule 'made-up'"):
        _declared(("entry",), ("decoder",))


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(RuleError, match=r"'attention-rnk'.*did you mean 'attention-rank'"):
        make_rule("attention-rnk")
    with pytest.raises(RuleError, match=r"known rules: attention-rank, .*fastv, .*pooling, .*random"):
        make_rule("xyz")


def test_an_unknown_version() -> None:
    with pytest.raises(RuleError, match="known in version 1, but got version 2"):
        declaration_of("random", 2)


def test_all_versions_are_named() -> None:
    assert versions_of("fastv")[:2] == (1, 2)
    with pytest.raises(RuleError, match="did you mean 'fastv'"):
        versions_of("fastvv")


def test_a_rule_is_declared_once() -> None:
    with pytest.raises(RuleError, match="must be declared once, but got 'random' version 1 twice"):
        registry._by_name_and_version(("plain", "plain"))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("random", {"sede": 1}, r"declared parameters \(quota, seed\), but got 'sede' .*; did you mean 'seed'\?"),
        ("random", {"xyz": 1}, r"declared parameters \(quota, seed\), but got 'xyz' \(in rule 'random'\)$"),
        ("random", {"seed": "one"}, "must be of type int, but got 'one'"),
        ("random", {"seed": True}, "must be of type int, but got True"),
        ("random", {"seed": -1}, "at least 0, but got -1"),
        ("random", {"seed": 2**128}, "at most 340282366920938463463374607431768211455, but got 3"),
        ("fastv-window", {"window": 10**10}, "at most 2147483647, but got 1"),
        ("mustdrop", {"ratio": 1}, r"of type float, but got 1 \(.*; write 1\.0"),
        ("fastv", {"query_rows": "all"}, "one of .last., .every., but got .all."),
        ("fastv", {"quota": "per-tile"}, "one of 'pooled', 'per-image', but got 'per-tile'"),
        ("attention-rank", {"query_rows": "first"}, "one of 'instruction', 'last', 'all', but got 'first'"),
    ],
)
def test_bad_parameters(name: str, parameters: dict[str, str | int | float | bool], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        make_rule(name, parameters)
