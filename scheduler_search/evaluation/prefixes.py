"""Prefixes of the batches of a search, kept on the host under a memory budget.

Knows: which of the kept prefixes a reduction can start from, which one is worth keeping next, and what goes when memory
is short. Does not know: models. Nothing here can change a score: a prefix is used only where it fits exactly, and what
is not here is computed again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
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

    When memory is short, prefixes of other stages than the newcomer's go: those that only lead to it, then the longest
    unused. Those of its own stage stay, and the newcomer is not kept: a stage visits its chunks in turns, and the
    longest unused would always be the one that is needed next.

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

        Those that only lead to it are the first to go, since the stages of a search go deeper; a refining search comes
        back to them.
        """
        if run.captured is None:
            return
        prefix, place = run.captured.to(torch.device("cpu")), _place(task, part)
        group = _group(task, prefix)
        needed = self.bytes + prefix.bytes - self._budget
        if needed > 0:
            passed = [entry for entry in self._entries.get(place, []) if _leads_to(entry.prefix, prefix, task)]
            disposable = [*((place, entry) for entry in passed), *self._others(group, passed)]
            if needed > sum(entry.prefix.bytes for _, entry in disposable):
                return
            self._make_room(needed, disposable)
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

    def _make_room(self, needed: int, disposable: Iterable[tuple[Place, _Entry]]) -> None:
        for place, entry in disposable:
            if needed > 0:
                self._drop(place, entry)
                needed -= entry.prefix.bytes

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


def _leads_to(first: Prefix, second: Prefix, task: ChunkTask) -> bool:
    """Whether the second, which this task gave, starts with the first, and no candidate of the stage starts there."""
    return (
        first.layer < task.shared_layers
        and same_rules(first.reduction, second.reduction)
        and second.counts[: first.layer] == first.counts
    )
