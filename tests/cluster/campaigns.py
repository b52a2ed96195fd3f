"""Campaigns of studies that take a second each, and what their studies decide."""

from __future__ import annotations

from pathlib import Path

from scheduler_search.coordinator import run_study
from scheduler_search.evaluation import LocalExecutor
from scheduler_search.export import searched_reduction
from scheduler_search.schedule.values import Schedule
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.campaign import Campaign
from scheduler_search.study.states import StudyRecord

TINY = """
[campaign]
name = "tiny"
[study.model]
id = "testbed:tiny-llava"
device = "cpu"
[study.data]
source = "testbed"
search = { samples = 32 }
[study.search]
first_layer = 9
initial = 2
iterations = 2
"""
# G-Search at two penalties and P-Sigmoid at four budgets, under two rules: twelve studies.
TWELVE = (
    TINY
    + """
[[matrix]]
"rule.name" = ["attention-rank", "random"]
"search.algorithm" = ["g-search"]
"search.stride" = 3
"search.refine" = false
"search.penalty" = [0.01, 0.1]
[[matrix]]
"rule.name" = ["attention-rank", "random"]
"search.algorithm" = ["p-sigmoid"]
"search.budget" = [0.1, 0.2, 0.3, 0.5]
"""
)


def write(folder: Path, text: str) -> Path:
    path = folder / "campaign.toml"
    path.write_text(text)
    return path


def outcome(database: StudyDatabase, study: StudyRecord) -> object:
    """All that a study decided by, and the digest of what it decided."""
    model = database.model_description(study)
    assert model is not None
    stages = database.stages(study)
    found = [(one.index, one.name, one.domain_digest, one.decision, database.trials(one)) for one in stages]
    return (found, Schedule(model.identity, searched_reduction(database, study)).digest)


def run_alone(folder: Path, campaign: Campaign) -> dict[str, object]:
    """Each study by itself; all have the same model and data, and so one executor."""
    executor = LocalExecutor(campaign.studies[0])
    with StudyDatabase.open(f"sqlite:///{folder}/alone.db") as database:
        for definition in campaign.studies:
            run_study(database, database.add_study(definition), executor)
        return {study.name: outcome(database, database.study(study.name)) for study in campaign.studies}
