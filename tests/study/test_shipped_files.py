"""The study files of the repository are valid, and their README knows every key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from scheduler_search.study.campaign import CampaignFile, CampaignSection, read_campaign_file
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.file import read_study_file
from scheduler_search.study.rule_section import EntryRuleSection, RuleSection

STUDIES = Path(__file__).parents[2] / "studies"
CAMPAIGN = STUDIES / "campaign.toml"
STUDY_FILES = sorted(set(STUDIES.glob("*.toml")) - {CAMPAIGN})
README = (STUDIES / "README.md").read_text(encoding="utf-8")


NO_KEYS = (
    (StudyDefinition, "written_paths"),
    (RuleSection, "parameters"),
    (EntryRuleSection, "parameters"),
)


def models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def keys(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        if (model, name) not in NO_KEYS:
            yield field.alias or name, model
        for inner in models(field.annotation):
            yield from keys(inner)


def documented(key: str) -> bool:
    return f"`{key}`" in README or f"`[{key}]`" in README or f"{{ {key} = " in README or f", {key} = " in README


def test_the_readme_names_every_key() -> None:
    found = set(keys(StudyDefinition))
    assert ("as", "ScheduleBudget") in {(key, model.__name__) for key, model in found}
    missing = [f"{model.__name__}.{key}" for key, model in found if not documented(key)]
    assert missing == []


def test_the_readme_names_every_default() -> None:
    for model in {model for _, model in keys(StudyDefinition)}:
        for name, field in model.model_fields.items():
            if isinstance(field.default, str | int | float):
                default = f'"{field.default}"' if isinstance(field.default, str) else str(field.default).lower()
                assert f"| `{name}` | `{default}` |" in README


@pytest.mark.parametrize("path", STUDY_FILES, ids=lambda path: path.stem)
def test_shipped_study_files_are_valid_and_named_like_their_study(path: Path) -> None:
    assert read_study_file(path).name == path.stem
    assert f"`{path.name}`" in README


def test_the_shipped_campaign_is_valid_and_its_page_knows_every_key() -> None:
    campaign = read_campaign_file(CAMPAIGN)
    assert campaign.name == CAMPAIGN.stem
    assert f"{len(campaign.studies)} studies" in CAMPAIGN.read_text()
    assert "(campaigns.md)" in README
    page = (STUDIES / "campaigns.md").read_text()
    for model in (CampaignFile, CampaignSection):
        for name in model.model_fields:
            assert f"| `{name}` |" in page or re.search(rf"`\[+{name}\]+`", page), name


def test_there_are_shipped_study_files() -> None:
    assert {"quickstart", "quickstart-sigmoid"} <= {path.stem for path in STUDIES.glob("*.toml")}
