"""Validates a searched schedule on held-out data, freezes it and writes it; or says why not.

Knows: measurements, baselines, the gate and the file. Does not know: tensors, or how the search found the schedule.
"""

from scheduler_search.export.front import (
    Expectation,
    chosen,
    expectation_of,
    parameters_of,
    reduction_of,
    target_of,
)
from scheduler_search.export.measure import Comparison, compare, measure, unreduced
from scheduler_search.export.paired import Mean, PairedDifference, mean_score, paired_difference
from scheduler_search.export.publish import (
    check_folder,
    check_gate,
    check_validated,
    freeze,
    publish,
    recorded_document,
    searched_reduction,
)
from scheduler_search.export.summary import StudyFigures, study_figures

__all__ = [
    "Comparison",
    "Expectation",
    "Mean",
    "PairedDifference",
    "StudyFigures",
    "check_folder",
    "check_gate",
    "check_validated",
    "chosen",
    "compare",
    "expectation_of",
    "freeze",
    "mean_score",
    "measure",
    "paired_difference",
    "parameters_of",
    "publish",
    "recorded_document",
    "reduction_of",
    "searched_reduction",
    "study_figures",
    "target_of",
    "unreduced",
]
