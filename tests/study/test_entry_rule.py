"""A rule of its own in front of the decoder: ``[entry_rule]``."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler_search.errors import RuleError, StudyFileError
from scheduler_search.rule import make_rule
from scheduler_search.study.definition import StudyDefinition
from tests.study.files import MINIMAL, read

ENTRY = '[entry_rule]\nname = "divprune"\n'


def test_the_rule_of_the_study_goes_on_with_what_it_leaves(tmp_path: Path) -> None:
    study = read(tmp_path, MINIMAL + ENTRY)
    assert study.places == ("entry", "decoder")
    assert study.search.refine is False
    reduction = study.reduction((0.5, 0.5, 0.25))
    assert (reduction.entry_rule, reduction.rule) == (make_rule("divprune"), make_rule("attention-rank"))
    assert study.reduction((1.0, 0.5, 0.25)).entry_rule is None


def test_in_front_of_it_may_be_the_tower(tmp_path: Path) -> None:
    study = read(tmp_path, MINIMAL + '[rule]\nname = "ficoco-vl"\n' + ENTRY)
    assert study.places == ("vision", "entry", "decoder")


def test_it_is_part_of_what_a_study_is(tmp_path: Path) -> None:
    without, study = read(tmp_path, MINIMAL), read(tmp_path, MINIMAL + ENTRY)
    assert study.digest != without.digest
    assert "entry_rule" not in without.to_json()
    assert StudyDefinition.from_json(study.to_json()) == study
    spelled = read(tmp_path, MINIMAL + ENTRY + 'quota = "pooled"\n')
    assert spelled.digest == study.digest
    assert read(tmp_path, MINIMAL + ENTRY + 'quota = "per-image"\n').digest != study.digest


def test_a_random_one_has_the_seed_of_the_study(tmp_path: Path) -> None:
    study = read(tmp_path, "seed = 7" + MINIMAL + '[entry_rule]\nname = "random"\n')
    assert study.rule_at("entry") == make_rule("random", {"seed": 7})
    assert study.rule_at("decoder") == make_rule("attention-rank")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[rule]\nname = "pooling"\n' + ENTRY, "one rule acts at the entry, but got 'pooling' at entry"),
        ('[entry_rule]\nname = "fastv"\n', "'fastv' acts only at decoder, but got it as the entry rule"),
        (ENTRY + 'at = "entry"\n', "an entry rule acts at the entry"),
        ("[entry_rule]\n", "name"),
        (ENTRY + '[search]\nalgorithm = "p-sigmoid"\nbudget = 0.5\n', "p-sigmoid searches the layers of the decoder"),
    ],
)
def test_refusals(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StudyFileError, match=message):
        read(tmp_path, MINIMAL + text)


@pytest.mark.parametrize(("line", "message"), [("quotas = 1", "did you mean 'quota'"), ("quota = 1", "of type str")])
def test_its_parameters_are_checked(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises((StudyFileError, RuleError), match=message):
        read(tmp_path, MINIMAL + ENTRY + line + "\n")
