"""`show` and `check`: look at a schedule document without a model or a database."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from scheduler_search.cli.render import bar_charts, interval
from scheduler_search.rule import Rule
from scheduler_search.schedule.document import read_document
from scheduler_search.schedule.values import Reduction


def show_schedule(path: Path) -> None:
    """Print what a document says; ScheduleDocumentError if it must not be trusted."""
    document = read_document(path)
    model, reduction, provenance = document.schedule.model, document.schedule.reduction, document.provenance
    console = Console()
    console.print(f"{model.id}, revision {model.revision}, {model.architecture}, {model.decoder_layers} decoder layers")
    console.print(f"rule: {_decoder_rule(reduction)}", soft_wrap=True)
    if reduction.entry_rule is not None:
        console.print(f"entry rule: {_rule(reduction.entry_rule)}", soft_wrap=True)
    if reduction.vision is not None:
        console.print(f"rule in the vision tower: {_rule(reduction.vision.rule)}", soft_wrap=True)
    console.print(bar_charts(reduction.keep_rates, reduction.tower_rates))
    console.print(
        f"found by {provenance.algorithm}, study {provenance.study}, seed {provenance.seed}, "
        f"{provenance.search_samples} search samples, {document.created}"
    )
    measured = document.measured
    if measured is None:
        console.print("not validated")
    else:
        console.print(
            f"validated on {measured.samples} samples, {measured.metric}: {measured.reduced.score:.4f} reduced, "
            f"{measured.unreduced.score:.4f} unreduced, difference "
            f"{interval(measured.difference.mean, *measured.difference.interval)}"
        )
    console.print(f"digest {document.digest}", soft_wrap=True)


def check_schedule(path: Path) -> None:
    """Check a document and print its digest; ScheduleDocumentError if it must not be trusted."""
    document = read_document(path)
    Console().print(f"{path} is a valid schedule, digest {document.digest}", soft_wrap=True, highlight=False)


def _decoder_rule(reduction: Reduction) -> str:
    """A document always names one; where no layer has fewer tokens than the one before, it is never run."""
    if len(set(reduction.keep_rates)) == 1 and (reduction.entry_rule is not None or reduction.vision is not None):
        return "none at decoder layers"
    return _rule(reduction.rule)


def _rule(rule: Rule) -> str:
    parameters = ", ".join(f"{name} = {value}" for name, value in rule.parameters)
    return f"{rule.name} v{rule.version} ({parameters})"
