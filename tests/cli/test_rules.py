"""`rules`: every declared rule is listed, and one is shown with all that is declared of it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from scheduler_search.cli.app import app
from scheduler_search.cli.rules import _allowed
from scheduler_search.errors import RuleError
from scheduler_search.rule import Declaration, Parameter, declarations, versions_of
from tests.cli.test_bad_input import Run, one_line
from tests.cli.test_bad_input import run as run


def printed(monkeypatch: pytest.MonkeyPatch, *arguments: str, columns: int = 300) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = CliRunner().invoke(app, ["rules", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_all_rules_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = printed(monkeypatch)
    for declaration in declarations():
        (line,) = [line for line in table.splitlines() if line.startswith(f"│ {declaration.name} ")]
        assert declaration.places[0] in line
    assert table.count(" * ") >= len(declarations())  # each has a default place


def test_nothing_is_cut_off_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    table = printed(monkeypatch, columns=80)
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80
    for declaration in declarations():
        stages = [name for one in declaration.stages.values() for name in (one.filter, one.correlate, one.compress)]
        parameters = [f"{one.name}={one.default}" for one in declaration.parameters]
        for name in (declaration.name, *filter(None, stages), *parameters):
            assert name in table, "a name is broken"


@pytest.mark.parametrize("declaration", declarations(), ids=lambda declaration: declaration.name)
def test_one_rule_in_full(monkeypatch: pytest.MonkeyPatch, declaration: Declaration) -> None:
    text = printed(monkeypatch, declaration.name, columns=1000)
    assert f"rule {declaration.name}, version {declaration.version}" in text
    assert declaration.source in text
    assert declaration.follows in text
    for place, stages in declaration.stages.items():
        default = " *" if place in declaration.default_places else ""
        (line,) = [line for line in text.splitlines() if line.startswith(f"│ {place}{default} ")]
        for name in (stages.filter, stages.correlate, stages.compress):
            assert name is None or name in line
    for parameter in declaration.parameters:
        (line,) = [line for line in text.splitlines() if line.startswith(f"│ {parameter.name} ")]
        assert str(parameter.default) in line
        assert parameter.meaning in line


def test_older_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for declaration in declarations():
        older = [version for version in versions_of(declaration.name) if version != declaration.version]
        assert ("may also name version" in printed(monkeypatch, declaration.name)) == bool(older)


def test_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = json.loads(printed(monkeypatch, "--json"))
    assert [document["name"] for document in documents] == [one.name for one in declarations()]
    (pooling,) = [document for document in documents if document["name"] == "pooling"]
    assert pooling == json.loads(printed(monkeypatch, "pooling", "--json"))
    assert pooling["default_places"] == ["entry"]
    assert pooling["stages"]["entry"]["compress"] == "compress.given"


@pytest.mark.parametrize(
    ("parameter", "text"),
    [
        (Parameter("x", "a", "", choices=("a", "b")), "a, b"),
        (Parameter("x", 1, "", low=0), "a whole number of at least 0"),
        (Parameter("x", 0.5, "", low=0, high=1), "a number from 0 to 1"),
        (Parameter("x", 0.5, "", high=2.5), "a number of at most 2.5"),
        (Parameter("x", 0.5, ""), "a number"),
        (Parameter("x", True, ""), "true or false"),
        (Parameter("x", "a", ""), "a text"),
    ],
)
def test_what_a_parameter_may_be(parameter: Parameter, text: str) -> None:
    assert _allowed(parameter) == text


def test_an_unknown_rule_is_refused_with_the_nearest(run: Run) -> None:
    one_line(*run("rules", "atention-rank"), "atention-rank", "did you mean 'attention-rank'?")
    one_line(*run("rules", "xyzzy"), "known rules: ", "random")


def test_the_versions_of_an_unknown_rule() -> None:
    with pytest.raises(RuleError, match="did you mean 'pooling'"):
        versions_of("poolin")
