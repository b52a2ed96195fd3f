"""The study database: what is recorded of studies, stages, trials, evaluations and schedules.

Knows: SQL and its transactions. Does not know: how candidates are chosen, or what a score means. Importing this package
imports neither Optuna nor torch; ``optuna_storage`` imports Optuna when it is called.
"""

from scheduler_search.storage.connection import database_exists, upgrade_database
from scheduler_search.storage.database import StudyDatabase
from scheduler_search.storage.optuna_trials import optuna_errors, optuna_storage

__all__ = ["StudyDatabase", "database_exists", "optuna_errors", "optuna_storage", "upgrade_database"]
