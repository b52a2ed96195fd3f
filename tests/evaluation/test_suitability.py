"""What a model cannot serve is said before a study begins, for each place of its rule."""

from __future__ import annotations

import pytest

from scheduler_search.errors import UnsupportedError
from scheduler_search.evaluation.models import LoadedModel, load_model
from scheduler_search.evaluation.suitability import check_rule
from scheduler_search.runtime import families
from scheduler_search.study import StudyDefinition


def definition(rule: dict[str, object]) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "name": "one",
            "model": {"id": "testbed:tiny-llava", "device": "cpu"},
            "data": {"source": "testbed", "search": {"samples": 2}},
            "rule": rule,
        }
    )


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(definition({}).model)


@pytest.mark.parametrize(
    "rule", [{}, {"name": "pooling"}, {"name": "tome"}, {"name": "ficoco-vl"}, {"name": "mustdrop"}], ids=str
)
def test_the_testbed_serves_rules_at_every_place(loaded: LoadedModel, rule: dict[str, object]) -> None:
    check_rule(loaded, definition(rule))
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_a_family_without_a_tower_of_its_own(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: object, _model: object) -> None:
        raise UnsupportedError("no tower")

    family = type(families.family_of(loaded.model))
    monkeypatch.setattr(family, "vision_tower", refuse)
    check_rule(loaded, definition({}))
    with pytest.raises(UnsupportedError, match="no tower"):
        check_rule(loaded, definition({"name": "tome"}))


def test_layers_that_must_see_every_token(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(families.family_of(loaded.model)), "whole_layers", 3)
    with pytest.raises(UnsupportedError, match="first 3 decoder layers must see every vision token"):
        check_rule(loaded, definition({}))
