"""The study database: what is recorded of studies, stages, trials, evaluations and schedules.

Knows: SQL and its transactions. Does not know: how candidates are chosen, or what a score means. Importing this package
imports neither Optuna nor torch; ``optuna_storage`` imports Optuna when it is called.
"""

from scheduler_search.storage.database import StudyDatabase
from scheduler_search.storage.engine import absolute_url, is_file
from scheduler_search.storage.maintenance import backup_database, database_exists, upgrade_database
from scheduler_search.storage.optuna_trials import optuna_errors, optuna_storage
from scheduler_search.storage.overview import DatabaseOverview
from scheduler_search.storage.server import ConnectionLostError

__all__ = [
    "ConnectionLostError",
    "DatabaseOverview",
    "StudyDatabase",
    "absolute_url",
    "backup_database",
    "database_exists",
    "is_file",
    "optuna_errors",
    "optuna_storage",
    "upgrade_database",
]
