"""Prefixes of the batches of a search, kept under a memory budget.

Knows: which of the kept prefixes a reduction can start from, which one is worth keeping next, and what goes when memory
is short. Does not know: models, or where memory is (``memory``). Nothing here can change a score: a prefix is used only
where it fits exactly, and what is not here is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from scheduler_search.evaluation.layout import Place
from scheduler_search.evaluation.memory import Entry, Memory, Order
from scheduler_search.rule import Rule
from scheduler_search.runtime import Plan, Prefix, PrefixRun, same_rules
from scheduler_search.schedule.values import Reduction, VisionReduction
from scheduler_search.study.values import ChunkTask, SplitName


@dataclass(frozen=True)
class _Group:
    """Prefixes that one stage of a search uses: one of each batch."""

    split: SplitName
    keep_rates: tuple[float, ...]
    rules: tuple[Rule | None, Rule]
    vision: VisionReduction | None


class PrefixStore:
    """The prefixes of one executor, by split, chunk and part of the chunk.

    When memory is short, prefixes of other stages than the newcomer's go, from the device to the host and from there
    out: those that only lead to it, then the longest unused. Those of its own stage stay, and the newcomer finds its
    place below them: a stage visits its chunks in turns, and the longest unused would always be the one that is needed
    next.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    @property
    def bytes(self) -> int:
        """Memory of all prefixes, on device and host."""
        return self._memory.bytes_of("prefix")

    def held(self) -> dict[Place, list[Prefix]]:
        """All prefixes by place, in the order in which they came."""
        return {
            place: [_prefix(entry) for entry in self._memory.at(place, "prefix")] for place in self._memory.places()
        }

    def run(self, task: ChunkTask, part: int, plan: Plan) -> PrefixRun:
        """The deepest prefix that a part of the task can start from, and what it should keep.

        Args:
            plan: of the part's samples under the task's reduction.
        """
        kept = self._memory.at(_place(task, part), "prefix")
        fitting = [entry for entry in kept if _prefix(entry).fits(task.reduction, plan)]
        best = max(fitting, key=lambda entry: _prefix(entry).layer, default=None)
        if best is not None:
            self._memory.touch(best)
            self._memory.raise_up(best, _order(best.group, ()))
        start = None if best is None else _prefix(best)
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
        prefix, place = run.captured, _place(task, part)
        group = _group(task, prefix)
        passed = [entry for entry in self._memory.at(place, "prefix") if _leads_to(_prefix(entry), prefix, task)]
        self._memory.keep(Entry(place, "prefix", prefix, group), _order(group, passed))


def _prefix(entry: Entry) -> Prefix:
    return cast("Prefix", entry.item)


def _order(group: object, passed: Sequence[Entry]) -> Order:
    """What may go for a prefix of this group: what it passes, then those of others, the longest unused first."""

    def order(entry: Entry) -> tuple[int, int] | None:
        if entry.kind != "prefix":
            return None
        if entry in passed:
            return 0, 0
        return (1, entry.used) if entry.group != group else None

    return order


def _place(task: ChunkTask, part: int) -> Place:
    return task.split, task.chunk, part


def _group(task: ChunkTask, prefix: Prefix) -> _Group:
    reduction: Reduction = prefix.reduction
    shared = min(prefix.layer, task.shared_layers)
    return _Group(task.split, reduction.keep_rates[:shared], (reduction.entry_rule, reduction.rule), reduction.vision)


def _leads_to(first: Prefix, second: Prefix, task: ChunkTask) -> bool:
    """Whether the second, which this task gave, starts with the first, and no candidate of the stage starts there."""
    return (
        first.layer < task.shared_layers
        and same_rules(first.reduction, second.reduction)
        and second.counts[: first.layer] == first.counts
    )
