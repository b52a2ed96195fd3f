"""`status`: what the study database knows, as tables or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console

from scheduler_search.cli.front import print_front
from scheduler_search.cli.render import bar_charts, plain_table
from scheduler_search.cli.workers import WORKER
from scheduler_search.study.states import StudyState

if TYPE_CHECKING:
    from scheduler_search.storage import StudyDatabase
    from scheduler_search.study.states import Decision, StageRecord, StudyRecord

_WORKER_LINES = 5


def print_status(url: str, name: str | None, as_json: bool) -> None:
    """Print all studies, or one with its stages.

    Raises:
        StudyNotFoundError: no study of that name.
    """
    from scheduler_search.storage import StudyDatabase

    with StudyDatabase.open(url, create=False) as database:
        if name is None:
            _print_all([_summary(database, study) for study in database.studies()], as_json)
        else:
            study = database.study(name)
            _print_one(_details(database, study), as_json)
            if not as_json:
                print_front(database.front(study), database.baselines(study))


def _summary(database: StudyDatabase, study: StudyRecord) -> dict[str, object]:
    stages = database.stages(study)
    return {
        "name": study.name,
        "state": study.state.value,
        "algorithm": study.definition.search.algorithm,
        "model": study.definition.model.id,
        "stages_decided": sum(stage.decision is not None for stage in stages),
        "trials": sum(len(database.trials(stage)) for stage in stages),
        "changed": study.changed.isoformat(timespec="seconds"),
        "error": study.error,
    }


def _details(database: StudyDatabase, study: StudyRecord) -> dict[str, object]:
    stages = database.stages(study)
    decided = [stage.decision for stage in stages if stage.decision is not None]
    return {
        **_summary(database, study),
        "digest": study.definition.digest,
        "stages": [_stage(database, stage) for stage in stages],
        **_keep_rates(database, study, decided[-1] if decided else None),
        "exported": bool(database.exported_targets(study)),
        "workers": _workers(database, study),
        **_front(database, study),
    }


def _keep_rates(database: StudyDatabase, study: StudyRecord, decision: Decision | None) -> dict[str, object]:
    """Of the decoder layers, and of the tower's where the study reduces there."""
    if decision is None:
        return {"keep_rates": None}
    model, rates = database.model_description(study), list(decision.keep_rates)
    in_front = 0 if model is None else study.definition.tower_layers(model.shape)
    return {"keep_rates": rates[in_front:], **({"vision_keep_rates": rates[:in_front]} if in_front else {})}


def _workers(database: StudyDatabase, study: StudyRecord) -> list[str]:
    """What the workers of a cluster did of late, where they run the study now."""
    if study.state is not StudyState.RUNNING:
        return []
    return [line.text for line in database.logs(study) if line.text.startswith(WORKER)][-_WORKER_LINES:]


def _front(database: StudyDatabase, study: StudyRecord) -> dict[str, object]:
    """What only a frontier study has."""
    if study.definition.search.algorithm != "frontier":
        return {}
    return {
        "front": [asdict(point) for point in database.front(study)],
        "baselines": [asdict(score) for score in database.baselines(study)],
        "exported_targets": database.exported_targets(study),
    }


def _stage(database: StudyDatabase, stage: StageRecord) -> dict[str, object]:
    finished = [trial.figures for trial in database.trials(stage) if trial.figures is not None]
    decision = stage.decision
    return {
        "name": stage.name,
        "trials": len(finished),
        "stopped": sum(not figures.complete for figures in finished),
        "best_objective": max((figures.objective for figures in finished if figures.complete), default=None),
        "decision": None
        if decision is None
        else {
            "parameter": decision.parameter,
            "value": decision.value,
            "score": decision.score,
            "objective": decision.objective,
        },
    }


def _print_all(studies: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(studies, indent=2))
        return
    columns = ("name", "state", "algorithm", "model", "stages_decided", "trials")
    rows = [[str(study[column]) for column in columns] for study in studies]
    Console().print(plain_table("studies", [column.replace("_", " ") for column in columns], rows, texts=4))


def _print_one(study: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(study, indent=2))
        return
    console = Console()
    console.print(f"study {study['name']}: {study['state']}, {study['algorithm']} on {study['model']}")
    if study["error"]:
        console.print(f"error: {study['error']}")
    stages = study["stages"]
    assert isinstance(stages, list)
    rows = [_stage_row(stage) for stage in stages]
    for line in study["workers"] if isinstance(study["workers"], list) else ():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(plain_table("stages", ("stage", "trials", "decided", "score", "objective"), rows))
    if isinstance(study["keep_rates"], list) and study["algorithm"] != "frontier":
        tower = study.get("vision_keep_rates", [])
        assert isinstance(tower, list)
        console.print(bar_charts(study["keep_rates"], tower))


def _stage_row(stage: Mapping[str, object]) -> tuple[str, ...]:
    decision = stage["decision"]
    if not isinstance(decision, dict):
        best = stage["best_objective"]
        return (str(stage["name"]), str(stage["trials"]), "", "", "" if best is None else f"{best:.4f} so far")
    return (
        str(stage["name"]),
        str(stage["trials"]),
        f"{decision['parameter']} {decision['value']:.4f}",
        f"{decision['score']:.4f}",
        f"{decision['objective']:.4f}",
    )
