"""Exports of a frontier study: what was asked for, which schedule answers it, and what was expected of that schedule.

Knows: the recorded trials, from which everything follows, and where an expectation stands in a document. Does not know:
how a score is predicted (``search.front``), or what is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue

from scheduler_search.errors import ExportError, GateError
from scheduler_search.export.publish import searched_reduction
from scheduler_search.schedule.document import ScheduleDocument
from scheduler_search.schedule.values import Reduction
from scheduler_search.search import algorithm_for
from scheduler_search.search.front import Front
from scheduler_search.search.frontier import Frontier
from scheduler_search.search.observation import Observation
from scheduler_search.search.target import Choice, Target, choose
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.states import StudyRecord
from scheduler_search.study.values import Executor


@dataclass(frozen=True)
class Expectation:
    """What a document says was expected of its schedule on new data, with standard errors."""

    score: float
    score_error: float
    difference: float
    difference_error: float


def target_of(
    study: StudyRecord, tflops: float | None, keep_rate: float | None, max_drop: float | None
) -> Target | None:
    """What an export asks of a front; None for a study that decided on one schedule.

    Beside a cost, ``max_drop`` is the gate alone; on its own it is the target, and the gate too.

    Raises:
        ExportError: options that do not fit the algorithm of the study, or each other.
    """
    algorithm, place = study.definition.search.algorithm, f"study {study.name!r}"
    if algorithm != "frontier":
        if tflops is not None or keep_rate is not None:
            raise ExportError(
                "--tflops and --keep-rate choose from the front of a frontier study",
                actual=f"algorithm {algorithm}, which decides on one schedule",
                place=place,
                remedy='leave them out, or search with algorithm = "frontier"',
            )
        return None
    if tflops is not None and keep_rate is not None:
        raise ExportError("an export takes one of --tflops and --keep-rate", actual="both", place=place)
    if tflops is None and keep_rate is None and max_drop is None:
        raise ExportError(
            "an export of a frontier study says what it may cost or lose",
            actual="no target",
            place=place,
            remedy="add --tflops X, --keep-rate X or --max-drop X",
        )
    costs = tflops is not None or keep_rate is not None
    return Target(tflops, keep_rate, None if costs else max_drop)


def chosen(database: StudyDatabase, study: StudyRecord, executor: Executor, target: Target) -> Choice:
    """The schedule of a finished frontier study that answers ``target``, from its recorded trials.

    Raises:
        ExportError: the study is not finished, or the model or the search split is not the one that it searched.
        GateError: no schedule is predicted to lose so little, or there is no validation split to bound a loss on.
        ScheduleError, SearchError: the cost is out of reach.
    """
    searched_reduction(database, study)
    shape, split = executor.model().shape, executor.split("search")
    frontier = algorithm_for(study.definition, shape.decoder.layers, shape, split)
    assert isinstance(frontier, Frontier)
    record = database.stages(study)[0]
    if record.domain_digest != frontier.stage.domain_digest:
        raise ExportError(
            "an export needs the model and the search split that the front was searched on",
            actual="others",
            place=f"study {study.name!r}",
            remedy="the model, the data or the program changed; launch a study of another name",
        )
    trials = database.trials(record)
    front = Front(frontier.stage, [Observation.of(one.candidate, one.figures) for one in trials if one.figures])
    validation = study.definition.data.validation
    if target.max_drop is not None and validation is None:
        raise GateError("--max-drop needs a measurement on a validation split", actual="a study without one")
    return choose(frontier.domain, front, target, 1 if validation is None else validation.samples)


def reduction_of(study: StudyRecord, choice: Choice) -> Reduction:
    """What is measured and frozen."""
    return study.definition.reduction(choice.candidate.keep_rates)


def parameters_of(target: Target, choice: Choice) -> dict[str, JsonValue]:
    """What the provenance of a document adds to the algorithm's parameters."""
    prediction = choice.prediction
    return {
        "target": {**target.to_document()},
        "budget": choice.candidate.value,
        "k": choice.k,
        "predicted": {
            "score": prediction.score,
            "score_error": prediction.score_error,
            "difference": prediction.difference,
            "difference_error": math.sqrt(prediction.difference_variance),
        },
    }


def expectation_of(document: ScheduleDocument) -> Expectation | None:
    """What was expected of the schedule of a document; None where it is not of a frontier study."""
    predicted = document.provenance.algorithm_parameters.get("predicted")
    return Expectation(**cast("dict[str, float]", predicted)) if isinstance(predicted, dict) else None
