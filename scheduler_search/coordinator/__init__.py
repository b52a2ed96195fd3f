"""Drives a study: ask, dispatch to an executor, record, tell, decide; and goes on after an interruption.

Knows: the search, the study database and the executor protocol. Does not know: Ray, terminals, or frozen schedules.
"""

from scheduler_search.coordinator.evaluations import Evaluations
from scheduler_search.coordinator.events import Event, Listener, StageDecided, StageStarted, TrialFinished
from scheduler_search.coordinator.run import make_algorithm, run_study

__all__ = [
    "Evaluations",
    "Event",
    "Listener",
    "StageDecided",
    "StageStarted",
    "TrialFinished",
    "make_algorithm",
    "run_study",
]
