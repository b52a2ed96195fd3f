"""Executes schedules on unmodified Hugging Face models, through reversible hooks.

Knows: models, their caches and attention. Does not know: how a schedule was found, stored or measured.
"""

from scheduler_search.runtime.apply import apply_prefix, apply_reduction, apply_schedule, can_resume, check_identity
from scheduler_search.runtime.handle import ScheduleHandle
from scheduler_search.runtime.identity import identify, model_shape, vision_tokens
from scheduler_search.runtime.placement import execution_device
from scheduler_search.runtime.plan import Plan
from scheduler_search.runtime.prefix import Prefix, PrefixRun, same_rules
from scheduler_search.runtime.report import LayerReport, Report, TowerLayerReport
from scheduler_search.runtime.views import TowerViews

__all__ = [
    "LayerReport",
    "Plan",
    "Prefix",
    "PrefixRun",
    "Report",
    "ScheduleHandle",
    "TowerLayerReport",
    "TowerViews",
    "apply_prefix",
    "apply_reduction",
    "apply_schedule",
    "can_resume",
    "check_identity",
    "execution_device",
    "identify",
    "model_shape",
    "same_rules",
    "vision_tokens",
]
