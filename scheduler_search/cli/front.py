"""How a front looks in a terminal: its points, the baselines beside it, and what was expected of an export.

Knows: recorded values. Does not know: how any of them was predicted or measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from scheduler_search.cli.render import plain_table

if TYPE_CHECKING:
    from scheduler_search.schedule.document import ScheduleDocument
    from scheduler_search.schedule.record import Measured
    from scheduler_search.study.front import BaselineScore, FrontPoint

_TERA = 1e12


def print_front(points: Sequence[FrontPoint], baselines: Sequence[BaselineScore]) -> None:
    """Print a recorded front and the baselines; nothing where there is no front."""
    console = Console()
    if points:
        console.print(_front_table(points))
    if baselines:
        console.print(_baseline_table(baselines))


def _front_table(points: Sequence[FrontPoint]) -> Table:
    rows = [
        (
            f"{point.budget:.4f}",
            f"{point.flops / _TERA:.4g}",
            f"{point.k:.3f}",
            f"{point.score:.4f} ± {point.standard_error:.4f}",
            f"{round(point.difference, 4) + 0.0:+.4f} ± {point.difference_error:.4f}",
            "evaluated" if point.evaluated else "predicted",
        )
        for point in points
    ]
    headings = ("mean keep rate", "TFLOPs", "k", "score on new data", "minus unreduced", "schedule was")
    return plain_table("front: the best schedule at each budget, ± one standard error", headings, rows, texts=0)


def _baseline_table(baselines: Sequence[BaselineScore]) -> Table:
    """One row per schedule and one column per budget; FLOPs where they are more than 2 % off those of the front."""
    budgets = list(dict.fromkeys(score.budget for score in baselines))
    names = list(dict.fromkeys(score.name for score in baselines))
    cells = {(score.name, score.budget): score for score in baselines}
    front = {score.budget: score for score in baselines if score.name == names[0]}
    rows = [(name, *(_cell(cells.get((name, budget)), front[budget]) for budget in budgets)) for name in names]
    headings = ("schedule", *(f"keep {budget:.3f}, {front[budget].flops / _TERA:.4g} TFLOPs" for budget in budgets))
    return plain_table("scores on the search split at matched FLOPs", headings, rows)


def _cell(score: BaselineScore | None, front: BaselineScore) -> str:
    if score is None:
        return ""
    ratio = score.flops / front.flops
    return f"{score.score:.4f}" + ("" if abs(ratio - 1.0) <= 0.02 else f" at {ratio:.2f} FLOPs")


def print_expectation(document: ScheduleDocument) -> None:
    """Print what a front predicted for the schedule, and how far off it was where that was measured."""
    from scheduler_search.export import expectation_of

    expected = expectation_of(document)
    if expected is None:
        return
    console = Console()
    parameters = document.provenance.algorithm_parameters
    console.print(
        f"chosen from the front: mean keep rate {parameters['budget']:.4f}, k {parameters['k']:.3f}", soft_wrap=True
    )
    console.print(
        f"predicted for new data: {expected.score:.4f} ± {expected.score_error:.4f} reduced, reduced minus unreduced "
        f"{expected.difference:+.4f} ± {expected.difference_error:.4f} (standard errors)",
        soft_wrap=True,
    )
    if document.measured is not None:
        console.print(_off(expected.score, expected.score_error, document.measured), soft_wrap=True)


def _off(score: float, error: float, measured: Measured) -> str:
    gap = score - measured.reduced.score
    together = math.hypot(error, measured.reduced.standard_error)
    return f"predicted minus measured score: {gap:+.4f}, {abs(gap) / together:.1f} standard errors of both together"
