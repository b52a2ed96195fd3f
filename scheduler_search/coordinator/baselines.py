"""What a frontier study records after its stage: the front, and what the baselines score on the search split beside it.

Knows: which points are shown and at which of them baselines run. Does not know: how a score is predicted or computed,
or how a front is printed.
"""

from __future__ import annotations

import math

from scheduler_search.coordinator.evaluations import Evaluations
from scheduler_search.coordinator.events import BaselineScored, Listener, ignore
from scheduler_search.schedule.values import Reduction
from scheduler_search.search import Explored, baselines
from scheduler_search.search.front import Front
from scheduler_search.search.frontier import Frontier
from scheduler_search.search.observation import paired_mean
from scheduler_search.search.target import summary
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.front import BaselineScore, FrontPoint
from scheduler_search.study.states import StudyRecord

# Budgets of the shown points whose FLOPs the baselines match.
COMPARED = (0.5, 0.25, 0.125)

# The front itself among the baselines.
FRONTIER = "frontier"


def record_front(
    database: StudyDatabase,
    study: StudyRecord,
    frontier: Frontier,
    explored: Explored,
    evaluations: Evaluations,
    listener: Listener = ignore,
) -> None:
    """Record the front of a stage and its baselines, unless that was done; both follow from the trials.

    Scores are those of ``evaluations``, which runs what is missing: an interruption costs the chunks in flight.
    """
    front = Front(explored.stage, explored.observations)
    observed = [explored.stage.candidates[candidate] for candidate in sorted(front.observed)]
    shown = summary(frontier.domain, front, observed)
    points = [
        FrontPoint(
            budget=choice.candidate.value,
            k=choice.k,
            flops=choice.candidate.flops,
            score=choice.prediction.score,
            standard_error=choice.prediction.score_error,
            difference=choice.prediction.difference,
            difference_error=math.sqrt(choice.prediction.difference_variance),
            evaluated=evaluated,
        )
        for choice, evaluated in shown
    ]
    if not database.front(study):
        database.record_front(study, points)
    if not database.baselines(study):
        scores: list[BaselineScore] = []
        for choice, _ in shown:
            if choice.candidate.value in COMPARED:
                searched = study.definition.reduction(choice.candidate.keep_rates)
                scores += _compared(study, frontier, choice.candidate.value, searched, evaluations, listener)
        database.record_baselines(study, scores)


def _compared(
    study: StudyRecord,
    frontier: Frontier,
    budget: float,
    searched: Reduction,
    evaluations: Evaluations,
    listener: Listener,
) -> list[BaselineScore]:
    domain = frontier.domain
    others = baselines(
        searched, domain.shape, domain.vision_tokens, domain.text_tokens, domain.first_layer, study.definition.seed
    )
    unreduced = evaluations.scores("search", searched.unreduced)
    result = []
    for name, reduction in [(FRONTIER, searched), *((other.name, other.reduction) for other in others)]:
        scores = evaluations.scores("search", reduction)
        difference, variance = paired_mean(scores, unreduced)
        result.append(
            BaselineScore(
                budget=budget,
                name=name,
                flops=domain.cost(reduction.keep_rates),
                score=math.fsum(scores) / len(scores),
                difference=difference,
                variance=variance,
            )
        )
        listener(BaselineScored(budget, name, result[-1].score))
    return result
