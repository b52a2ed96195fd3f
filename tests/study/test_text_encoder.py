"""The CLIP model that questions are given to: named where the rule asks for it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler_search.errors import StudyFileError
from scheduler_search.study.campaign import read_campaign_file
from scheduler_search.study.definition import StudyDefinition
from tests.study.files import MINIMAL, read, write

NAMED = MINIMAL.replace("[data]", 'text_encoder = "org/clip"\n[data]')
ASKING = '[rule]\nname = "cdpruner"\ntext_features = "clip"\n'
CAMPAIGN = """
[campaign]
name = "rules"
[study.model]
id = "testbed:tiny-llava"
[study.data]
source = "testbed"
search = { samples = 8 }
[[matrix]]
"rule.name" = ["fastv", "cdpruner"]
[[matrix]]
"rule.name" = ["visiontrim"]
"rule.text_features" = "clip"
"model.text_encoder" = "org/clip"
"""


@pytest.mark.parametrize("rule", ["cdpruner", "visiontrim"])
def test_it_is_part_of_what_a_study_is(tmp_path: Path, rule: str) -> None:
    text = NAMED + ASKING.replace("cdpruner", rule)
    study = read(tmp_path, text)
    assert (study.model.text_encoder, study.model.text_encoder_revision) == ("org/clip", "main")
    assert StudyDefinition.from_json(study.to_json()) == study
    spelled = text.replace('"org/clip"', '"org/clip"\ntext_encoder_revision = "main"')
    assert read(tmp_path, spelled).digest == study.digest
    assert read(tmp_path, spelled.replace('"main"', '"refs/pr/8"')).digest != study.digest
    assert read(tmp_path, text.replace("org/clip", "org/other")).digest != study.digest


def test_a_path_starts_from_the_folder_of_the_file(tmp_path: Path) -> None:
    text = NAMED.replace("org/clip", "./clip") + ASKING
    found = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        found.append(read(folder, text))
    assert [one.model.text_encoder for one in found] == [str(tmp_path / place / "clip") for place in ("here", "there")]
    assert found[0].digest == found[1].digest


def test_a_rule_that_asks_needs_it(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"needs the CLIP model.*\[model\] text_encoder.*for example text_encoder"):
        read(tmp_path, MINIMAL + ASKING)


@pytest.mark.parametrize(
    "rule",
    [
        "",
        ASKING.replace('"clip"', '"decoder"'),
        ASKING.replace("cdpruner", "visiontrim") + 'at = "decoder"',
    ],
    ids=["another", "by the decoder", "in the decoder alone"],
)
def test_a_rule_that_does_not_ask_must_not_have_it(tmp_path: Path, rule: str) -> None:
    with pytest.raises(StudyFileError, match=r"for a rule that asks it.*'org/clip' for.*remove the key"):
        read(tmp_path, NAMED + rule)


def test_in_the_decoder_alone_nobody_asks(tmp_path: Path) -> None:
    rule = ASKING.replace("cdpruner", "visiontrim") + 'at = "decoder"'
    assert not read(tmp_path, MINIMAL + rule).rule.asks_encoder


def test_a_revision_is_of_an_encoder(tmp_path: Path) -> None:
    text = MINIMAL.replace("[data]", 'text_encoder_revision = "main"\n[data]')
    with pytest.raises(StudyFileError, match="only a text_encoder has such a revision"):
        read(tmp_path, text)


def test_a_campaign_names_it_beside_its_rule(tmp_path: Path) -> None:
    campaign = read_campaign_file(write(tmp_path, CAMPAIGN, "campaign.toml"))
    assert [study.model.text_encoder for study in campaign.studies] == [None, None, "org/clip"]
