"""StudyDatabase: everything that is recorded of studies, and the rules under which it is.

Knows: what may be recorded twice (the same again: always; something else in its place: never). Does not know: SQL
servers (``engine``), Optuna (``optuna_trials``), or why something is recorded.
"""

from __future__ import annotations

from scheduler_search.storage.descriptions import Descriptions
from scheduler_search.storage.evaluations import Evaluations
from scheduler_search.storage.fronts import Fronts
from scheduler_search.storage.logs import Logs
from scheduler_search.storage.overview import Overviews
from scheduler_search.storage.queue import Queue
from scheduler_search.storage.schedules import Schedules
from scheduler_search.storage.stages import Stages


class StudyDatabase(Queue, Logs, Stages, Evaluations, Fronts, Descriptions, Schedules, Overviews):
    """A study database, opened with ``StudyDatabase.open``; a context manager that closes it.

    Every method is one transaction: after a kill at any moment its effect is there in full or not at all, and what a
    method returned from is durable. Methods may be called from several processes at once. Recording the same thing
    again does nothing; recording something else in its place is refused. Any method raises DatabaseError where the
    database cannot be used (disk full, read-only, locked for 30 seconds), and LeaseLostError where it is ``holding`` a
    lease that was lost.
    """
