"""Put a schedule on a model: the public entry of the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from scheduler_search.errors import ScheduleMismatchError, UnsupportedError
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import Reads, Rule, shrinks_images
from scheduler_search.runtime.families import Family, family_of
from scheduler_search.runtime.handle import ScheduleHandle
from scheduler_search.runtime.identity import identify
from scheduler_search.runtime.plan import Plan
from scheduler_search.runtime.prefix import PrefixRun
from scheduler_search.runtime.question import QuestionEncoder
from scheduler_search.runtime.refusals import check_model
from scheduler_search.runtime.tower_plan import entry_reads
from scheduler_search.schedule.values import ModelIdentity, Reduction, Schedule

if TYPE_CHECKING:
    from scheduler_search.schedule.document import ScheduleDocument


def apply_schedule(
    model: nn.Module,
    schedule: Schedule | ScheduleDocument | str | Path,
    *,
    allow_other_model: bool = False,
    question_encoder: QuestionEncoder | None = None,
) -> ScheduleHandle:
    """Apply a schedule, or the schedule of a document or file, to the model as ``from_pretrained`` gives it.

    From then on every prefill of a prompt with images is reduced, in ``forward`` and ``generate``, until the handle is
    removed. Later turns on the same cache see the reduced prompt; a new image in such a turn is kept whole. Logits and
    hidden states are those of the tokens that are left: text after the last image keeps its place from the end.

    Args:
        allow_other_model: accept a model whose configuration differs from the one the schedule was searched on; the
            number of layers must still be the same.
        question_encoder: see ``apply_reduction``.

    Raises:
        ScheduleMismatchError: the schedule is for another model.
        ScheduleDocumentError: a file that cannot be read or trusted.
        UnsupportedError: the model, or what the schedule asks of it, is not served.
    """
    resolved = _resolve(schedule)
    check_identity(resolved, identify(model), allow_other_model=allow_other_model)
    return apply_reduction(model, resolved.reduction, question_encoder=question_encoder)


def apply_reduction(
    model: nn.Module, reduction: Reduction, *, question_encoder: QuestionEncoder | None = None
) -> ScheduleHandle:
    """Apply keep rates and rules without asking which model they are for.

    Args:
        question_encoder: for entry rules with ``text_features = "clip"``, which are refused without one; all others
            leave it alone. The questions themselves are said in ``handle.questions``.

    Raises:
        ScheduleMismatchError: not one keep rate per decoder layer.
        UnsupportedError: the model, or what the reduction asks of it, is not served.
    """
    return _apply(model, reduction, None, question_encoder)


def apply_prefix(
    model: nn.Module, run: PrefixRun, *, question_encoder: QuestionEncoder | None = None
) -> ScheduleHandle:
    """Apply a reduction whose prefills start from a prefix, or give one, or both; each gives what the whole gives.

    All prompts that are then read must be the batch of the prefix, with the same questions.

    Raises:
        UnsupportedError: as for ``apply_reduction``; or a model for which ``can_resume`` is False.
    """
    if not can_resume(model):
        raise UnsupportedError(
            "prefixes need decoder layers that read nothing but what the layer before gave",
            actual=type(model).__name__,
            remedy="run it whole, with apply_reduction",
        )
    return _apply(model, run.reduction, run, question_encoder)


def can_resume(model: nn.Module) -> bool:
    """Whether prefills of this model can start from a prefix."""
    return family_of(model).resumable(model.config)


def plan_of(model: nn.Module, reduction: Reduction, vision_tokens: tuple[int, ...]) -> Plan:
    """What a prefill of samples with so many vision tokens will do under a reduction."""
    patches = None if reduction.vision is None else family_of(model).vision_tower(model).patches
    return Plan.under(reduction, vision_tokens, patches)


def views_wanted(model: nn.Module, entry_rule: Rule | None) -> tuple[Reads, ...]:
    """What an entry rule reads of the vision tower, for ``compute_features``.

    Raises:
        UnsupportedError: a tower that does not have it.
    """
    return entry_reads(model, family_of(model), entry_rule)


def _apply(
    model: nn.Module, reduction: Reduction, prefix: PrefixRun | None, encoder: QuestionEncoder | None
) -> ScheduleHandle:
    family = family_of(model)
    layers = family.layers(model.config)[0]
    if len(reduction.keep_rates) != layers:
        raise _wrong_depth(len(reduction.keep_rates), layers, type(model).__name__)
    _check_unhooked(model, family)
    check_model(model, family, reduction)
    rule = reduction.entry_rule
    entry = None if rule is None or shrinks_images(rule) else load_reducer(rule, "entry")
    return ScheduleHandle(model, family, reduction, entry, load_reducer(reduction.rule, "decoder"), prefix, encoder)


def _resolve(schedule: Schedule | ScheduleDocument | str | Path) -> Schedule:
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, str | Path):
        from scheduler_search.schedule.document import read_document  # only files need the parser

        return read_document(Path(schedule)).schedule
    return schedule.schedule


def check_identity(schedule: Schedule, found: ModelIdentity, *, allow_other_model: bool = False) -> None:
    """Refuse a model that the schedule was not searched for.

    Raises:
        ScheduleMismatchError: another number of decoder layers, or another config digest unless ``allow_other_model``.
    """
    expected = schedule.model
    if found.decoder_layers != expected.decoder_layers:
        raise _wrong_depth(expected.decoder_layers, found.decoder_layers, found.architecture)
    if found.config_digest != expected.config_digest and not allow_other_model:
        raise ScheduleMismatchError(
            f"the schedule is for {expected.id} ({expected.architecture}, {expected.config_digest[:15]})",
            actual=f"{found.id} ({found.architecture}, {found.config_digest[:15]})",
            remedy="search a schedule for this model, or pass allow_other_model=True",
        )


def _wrong_depth(expected: int, found: int, place: str) -> ScheduleMismatchError:
    return ScheduleMismatchError(
        f"the schedule is for a decoder of {expected} layers",
        actual=f"{found} layers",
        place=place,
        remedy="search a schedule for this model",
    )


def _check_unhooked(model: nn.Module, family: Family) -> None:
    hooks = family.input_module(model)._forward_pre_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), ScheduleHandle) for hook in hooks):
        raise UnsupportedError(
            "a model can carry one schedule at a time",
            actual="a model that already has one",
            place=type(model).__name__,
            remedy="call remove() on the handle of the first, or leave its with block",
        )
