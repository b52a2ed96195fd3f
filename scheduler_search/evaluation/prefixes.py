"""Prefixes of the batches of a search, kept on the host under a memory budget.

Knows: which of the kept prefixes a reduction can start from, which one is worth keeping next, and what goes when memory
is short. Does not know: models. Nothing here can change a score: a prefix is used only where it fits exactly, and what
is not here is computed again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from scheduler_search.evaluation.layout import Place
from scheduler_search.rule import Rule
from scheduler_search.runtime import Plan, Prefix, PrefixRun, same_rules
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.values import ChunkTask, SplitName


@dataclass(frozen=True)
class _Group:
    """Prefixes that one stage of a search uses: one of each batch."""

    split: SplitName
    keep_rates: tuple[float, ...]
    rules: tuple[Rule | None, Rule]


@dataclass
class _Entry:
    prefix: Prefix
    group: _Group
    used: int


class PrefixStore:
    """The prefixes of one executor, by split, chunk and part of the chunk.

    When memory is short, prefixes of other stages than the newcomer's go, the longest unused first. Those of its own
    stage stay, and the newcomer is not kept: a stage visits its chunks in turns, and the longest unused would always be
    the one that is needed next.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._entries: dict[Place, list[_Entry]] = {}
        self._uses = 0
        self.bytes = 0

    def run(self, task: ChunkTask, part: int, vision_tokens: tuple[int, ...]) -> PrefixRun:
        """The deepest prefix that a part of the task can start from, and what it should keep.

        Args:
            vision_tokens: N of the part's samples.
        """
        plan = Plan.of(task.reduction.keep_rates, vision_tokens)
        kept = self._entries.get(_place(task, part), [])
        fitting = [entry for entry in kept if entry.prefix.fits(task.reduction, plan)]
        best = max(fitting, key=lambda entry: entry.prefix.layer, default=None)
        if best is not None:
            self._uses += 1
            best.used = self._uses
        start = None if best is None else best.prefix
        first = 0 if start is None else start.layer
        wanted = (task.shared_layers, task.branch_layers)
        capture = next((layer for layer in wanted if first < layer < len(task.reduction.keep_rates)), None)
        return PrefixRun(task.reduction, start, capture)

    def keep(self, task: ChunkTask, part: int, run: PrefixRun) -> None:
        """Keep what the part's run captured, if memory allows.

        It replaces those that lead to it and that nothing which follows will start from: the candidates of a stage
        share one prefix, and some of them share branches of it.
        """
        if run.captured is None:
            return
        prefix, place = run.captured.to(torch.device("cpu")), _place(task, part)
        group = _group(task, prefix)
        passed = [entry for entry in self._entries.get(place, []) if _replaces(prefix, entry.prefix, task)]
        needed = self.bytes + prefix.bytes - sum(entry.prefix.bytes for entry in passed) - self._budget
        others = [] if needed <= 0 else self._others(group, passed)
        if needed > sum(entry.prefix.bytes for _, entry in others):
            return
        for entry in passed:
            self._drop(place, entry)
        for other, entry in others:
            if self.bytes + prefix.bytes > self._budget:
                self._drop(other, entry)
        self._uses += 1
        self._entries.setdefault(place, []).append(_Entry(prefix, group, self._uses))
        self.bytes += prefix.bytes

    def _others(self, group: _Group, passed: list[_Entry]) -> list[tuple[Place, _Entry]]:
        """What may go for a newcomer of this group beside what it passes, the longest unused first."""
        found = [
            (place, entry)
            for place, entries in self._entries.items()
            for entry in entries
            if entry.group != group and entry not in passed
        ]
        return sorted(found, key=lambda pair: pair[1].used)

    def _drop(self, place: Place, entry: _Entry) -> None:
        self._entries[place] = [one for one in self._entries[place] if one is not entry]
        self.bytes -= entry.prefix.bytes


def default_budget() -> int:
    """A quarter of the memory of this machine, in bytes."""
    return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES")) // 4


def _place(task: ChunkTask, part: int) -> Place:
    return task.split, task.chunk, part


def _group(task: ChunkTask, prefix: Prefix) -> _Group:
    reduction: Reduction = prefix.reduction
    shared = min(prefix.layer, task.shared_layers)
    return _Group(task.split, reduction.keep_rates[:shared], (reduction.entry_rule, reduction.rule))


def _replaces(newcomer: Prefix, other: Prefix, task: ChunkTask) -> bool:
    return (
        other.layer < max(task.shared_layers, 1)
        and same_rules(other.reduction, newcomer.reduction)
        and newcomer.counts[: other.layer] == other.counts
    )
