"""Drives a study: ask, dispatch to an executor, record, tell, decide; and goes on after an interruption.

Knows: the search, the study database and the executor protocol. Does not know: Ray, terminals, or frozen schedules.
"""

from scheduler_search.coordinator.daemon import Daemon
from scheduler_search.coordinator.descriptions import RecordedExecutor, TimedExecutor, record_descriptions
from scheduler_search.coordinator.evaluations import Evaluations, Stopped
from scheduler_search.coordinator.events import Event, Listener, StageDecided, StageStarted, TrialFinished
from scheduler_search.coordinator.ownership import Ownership, owned, owner_text
from scheduler_search.coordinator.run import make_algorithm, run_study

__all__ = [
    "Daemon",
    "Evaluations",
    "Event",
    "Listener",
    "Ownership",
    "RecordedExecutor",
    "StageDecided",
    "StageStarted",
    "Stopped",
    "TimedExecutor",
    "TrialFinished",
    "make_algorithm",
    "owned",
    "owner_text",
    "record_descriptions",
    "run_study",
]
