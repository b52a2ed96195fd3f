"""What a study came to, in a few figures for a table of many studies.

Knows: which recorded figures say it best. Does not know: how they were measured. Nothing is measured, and nothing is
written: what is not recorded is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from scheduler_search.errors import ExportError
from scheduler_search.export.measure import unreduced
from scheduler_search.export.publish import recorded_document, searched_reduction
from scheduler_search.schedule.cost import mean_prefill_flops
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.key import evaluation_key
from scheduler_search.study.states import StudyRecord
from scheduler_search.study.values import SplitDescription, SplitName

_TERA = 1e12


@dataclass(frozen=True)
class StudyFigures:
    """Figures of the schedule that a study found.

    Args:
        split: that they are of: the validation split once the study is exported, the search split before.
        score: mean of the metric on the validation split, or of what is searched by on the search split.
        loss: mean score of the unreduced model minus ``score``.
        tflops: mean prefill TFLOPs per sample.
        milliseconds: of the prefill of one chunk.
    """

    split: SplitName | None = None
    score: float | None = None
    loss: float | None = None
    tflops: float | None = None
    milliseconds: float | None = None


def study_figures(database: StudyDatabase, study: StudyRecord) -> StudyFigures:
    """The figures of a study; none of one that is not finished, or that has a front in the place of one schedule."""
    if study.definition.search.algorithm == "frontier":
        return StudyFigures()
    document = recorded_document(database, study)
    if document is not None and (measured := document.measured) is not None:
        times = measured.prefill_milliseconds
        return StudyFigures(
            split="validation",
            score=measured.reduced.score,
            loss=-measured.difference.mean,
            tflops=measured.tflops.reduced,
            milliseconds=None if times is None else times.reduced,
        )
    try:
        reduction = searched_reduction(database, study)
    except ExportError:
        return StudyFigures()
    return _searched(database, study, reduction)


def _searched(database: StudyDatabase, study: StudyRecord, reduction: Reduction) -> StudyFigures:
    model, split = database.model_description(study), database.split_description(study, "search")
    if model is None or split is None:
        return StudyFigures()
    times = database.prefill(evaluation_key(split.context_digest, reduction, split.vision_tokens))
    score, full = (_mean(database, split, one) for one in (reduction, unreduced(reduction)))
    flops = mean_prefill_flops(
        model.shape,
        reduction.keep_rates,
        split.vision_tokens,
        split.text_tokens,
        reduction.tower_rates,
        reduction.image_rate,
    )
    return StudyFigures(
        split="search",
        score=score,
        loss=None if score is None or full is None else full - score,
        tflops=flops / _TERA,
        milliseconds=None if times is None else times[0],
    )


def _mean(database: StudyDatabase, split: SplitDescription, reduction: Reduction) -> float | None:
    """Mean recorded score; None where a chunk is missing."""
    chunks = database.scores_of(evaluation_key(split.context_digest, reduction, split.vision_tokens))
    return fmean(chain.from_iterable(chunks.values())) if len(chunks) == split.chunks else None
