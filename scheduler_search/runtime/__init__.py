"""Executes schedules on unmodified Hugging Face models, through reversible hooks.

Knows: models, their caches and attention. Does not know: how a schedule was found, stored or measured.
"""

from scheduler_search.runtime.apply import (
    apply_prefix,
    apply_reduction,
    apply_schedule,
    can_resume,
    check_identity,
    plan_of,
    views_wanted,
)
from scheduler_search.runtime.handle import ScheduleHandle
from scheduler_search.runtime.identity import identify, model_shape, vision_tokens
from scheduler_search.runtime.placement import execution_device
from scheduler_search.runtime.plan import Plan
from scheduler_search.runtime.prefix import Prefix, PrefixRun, same_rules
from scheduler_search.runtime.question import QuestionEncoder, Questions, load_question_encoder
from scheduler_search.runtime.report import LayerReport, Report, TowerLayerReport
from scheduler_search.runtime.smaller_images import SmallerImages, compute_smaller_features, smaller_images
from scheduler_search.runtime.tower import compute_features
from scheduler_search.runtime.views import Beside, TowerViews

__all__ = [
    "Beside",
    "LayerReport",
    "Plan",
    "Prefix",
    "PrefixRun",
    "QuestionEncoder",
    "Questions",
    "Report",
    "ScheduleHandle",
    "SmallerImages",
    "TowerLayerReport",
    "TowerViews",
    "apply_prefix",
    "apply_reduction",
    "apply_schedule",
    "can_resume",
    "check_identity",
    "compute_features",
    "compute_smaller_features",
    "execution_device",
    "identify",
    "load_question_encoder",
    "model_shape",
    "plan_of",
    "same_rules",
    "smaller_images",
    "views_wanted",
    "vision_tokens",
]
