"""What a study is: its file, its definition, its states, and the values that pass between the parts that run it.

Knows: no model, no database, no algorithm. Does not import torch, Optuna or SQL.
"""

from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.file import read_study_file

__all__ = ["StudyDefinition", "read_study_file"]
