"""Which chunk goes to which worker, as a pure value: nothing is sent from here, and no clock is read.

Knows: that tasks are taken as late as possible, that a worker is quick with chunks it has had, that nobody shall be
idle while work waits, and that a chunk that failed somewhere is tried elsewhere. Does not know: Ray, scores, or when to
give up.

A chunk's *home* is the worker that ran it last: it holds what the chunk needs. A free worker takes the waiting chunks
whose home it is, then those without a home, then looks further ahead for such, and only an idle one takes from others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from scheduler_search.study.values import ChunkTask, SplitName

Place = tuple[SplitName, int]

DEPTH = 2


@dataclass(eq=False)
class Unit:
    """A task that was taken, with how often it failed, and on which workers."""

    task: ChunkTask
    failures: int = 0
    avoided: set[str] = field(default_factory=set)

    @property
    def place(self) -> Place:
        """The chunk, whatever it is run with."""
        return self.task.split, self.task.chunk


@dataclass(frozen=True)
class Order:
    """Worker ``worker`` gets the unit, behind what it has; ``taken_from`` is who had it queued and must not run it."""

    worker: str
    unit: Unit
    taken_from: str | None = None


class Homes:
    """Who ran which chunk last, and who has had it at all; outlives the runs of an executor."""

    def __init__(self) -> None:
        self._last: dict[Place, str] = {}
        self._had: dict[str, set[Place]] = {}

    def of(self, place: Place) -> str | None:
        """The home of a chunk."""
        return self._last.get(place)

    def had(self, worker: str, place: Place) -> bool:
        """Whether a worker has had a chunk."""
        return place in self._had.get(worker, ())

    def move(self, place: Place, worker: str) -> None:
        """Make a worker the home of a chunk."""
        self._last[place] = worker
        self._had.setdefault(worker, set()).add(place)

    def forget(self, worker: str) -> None:
        """A worker is gone, and all it held."""
        self._had.pop(worker, None)
        self._last = {place: home for place, home in self._last.items() if home != worker}


class Dispatch:
    """The units of one run.

    Args:
        tasks: taken one by one, and only when a worker has room for more: at most ``depth`` times the workers at once.
        homes: of the chunks; kept up to date here.
        depth: units that a worker has at most: the one that it runs, and those queued behind it.
    """

    def __init__(self, tasks: Iterable[ChunkTask], homes: Homes, depth: int = DEPTH) -> None:
        self._tasks: Iterator[ChunkTask] | None = iter(tasks)
        self._homes = homes
        self._depth = depth
        self._unread = 0
        self._waiting: list[Unit] = []
        self._queues: dict[str, list[Unit]] = {}

    @property
    def finished(self) -> bool:
        """Whether there are no more tasks, and none is under way."""
        return self._tasks is None and not self._waiting and not any(self._queues.values())

    def join(self, worker: str) -> None:
        """A worker takes units from now on."""
        self._queues.setdefault(worker, [])

    def leave(self, worker: str, blamed: Unit | None = None) -> bool:
        """A worker is gone: its units wait again. Whether ``blamed``, which it ran when it ended, is still to be done.

        It may have been taken from the worker too late, and have ended it all the same.
        """
        self._waiting[:0] = self._queues.pop(worker, [])
        self._homes.forget(worker)
        if blamed is None or not any(blamed in units for units in (self._waiting, *self._queues.values())):
            return False
        _count_failure(blamed, worker)
        return True

    def done(self, worker: str, unit: Unit) -> bool:
        """A worker has run a unit; False where it was not its own any more, so that the result is another's to give."""
        if unit not in self._queues.get(worker, []):
            return False
        self._queues[worker].remove(unit)
        return True

    def failed(self, worker: str, unit: Unit) -> bool:
        """A worker could not run a unit, which waits again; False where it was not its own any more."""
        if not self.done(worker, unit):
            return False
        _count_failure(unit, worker)
        self._waiting.insert(0, unit)
        return True

    def assign(self, unread: int = 0) -> list[Order]:
        """Everything that can be handed out now: to idle workers first, then to those with room in their queue.

        Args:
            unread: results that nobody has seen yet, which may change what comes next: they count as under way.
        """
        self._unread = unread
        orders: list[Order] = []
        while (order := self._next()) is not None:
            orders.append(order)
        return orders

    def _next(self) -> Order | None:
        idle = [worker for worker, queue in self._queues.items() if not queue]
        busy = [worker for worker, queue in self._queues.items() if 0 < len(queue) < self._depth]
        # Idle workers get what suits them before any takes what would suit another, or is queued behind another's.
        ways = ((self._own, idle), (self._foreign, idle), (self._queued, idle), (self._own, busy))
        orders = (way(worker) for way, workers in ways for worker in workers)
        return next((order for order in orders if order is not None), None)

    def _own(self, worker: str) -> Order | None:
        return self._hand(worker, self._ahead(worker))

    def _foreign(self, worker: str) -> Order | None:
        return self._hand(worker, self._away(worker))

    def _hand(self, worker: str, unit: Unit | None) -> Order | None:
        if unit is None:
            return None
        self._waiting.remove(unit)
        return self._order(worker, unit)

    def _order(self, worker: str, unit: Unit, taken_from: str | None = None) -> Order:
        self._queues[worker].append(unit)
        self._homes.move(unit.place, worker)
        return Order(worker, unit, taken_from)

    def _ahead(self, worker: str) -> Unit | None:
        """A unit that is the worker's own or nobody's, looking further ahead for one as far as is allowed."""
        own = self._first(worker, lambda unit: self._homes.of(unit.place) == worker)
        unit = own or self._first(worker, lambda unit: self._homes.of(unit.place) is None)
        if unit is not None:
            return unit
        while (unit := self._take()) is not None:
            if self._homes.of(unit.place) in (worker, None):
                return unit
        return None

    def _away(self, worker: str) -> Unit | None:
        """A waiting unit of another: one whose chunk the worker has had, or else of whoever has most waiting."""
        known = self._first(worker, lambda unit: self._homes.had(worker, unit.place))
        if known is not None:
            return known
        homes = [self._homes.of(unit.place) for unit in self._waiting]
        allowed = [unit for unit in self._waiting if self._may(worker, unit)]
        return max(allowed, key=lambda unit: homes.count(self._homes.of(unit.place)), default=None)

    def _queued(self, worker: str) -> Order | None:
        """A unit that is queued behind another on a busy worker; what runs already is nobody else's."""
        for victim in sorted(self._queues, key=lambda one: -len(self._queues[one])):
            queued = [unit for unit in self._queues[victim][1:] if self._may(worker, unit)]
            if queued:
                known = [unit for unit in queued if self._homes.had(worker, unit.place)]
                unit = (known or queued)[-1]
                self._queues[victim].remove(unit)
                return self._order(worker, unit, victim)
        return None

    def _first(self, worker: str, fits: Callable[[Unit], bool]) -> Unit | None:
        return next((unit for unit in self._waiting if self._may(worker, unit) and fits(unit)), None)

    def _may(self, worker: str, unit: Unit) -> bool:
        """Whether a worker may try a unit: it has not failed there, or on every worker there is."""
        return worker not in unit.avoided or unit.avoided.issuperset(self._queues)

    def _take(self) -> Unit | None:
        """The next task, which waits now; None where there is none, or too much is under way."""
        under_way = self._unread + len(self._waiting) + sum(map(len, self._queues.values()))
        if self._tasks is None or under_way >= self._depth * len(self._queues):
            return None
        for task in self._tasks:
            unit = Unit(task)
            self._waiting.append(unit)
            return unit
        self._tasks = None
        return None


def _count_failure(unit: Unit, worker: str) -> None:
    unit.failures += 1
    unit.avoided.add(worker)
