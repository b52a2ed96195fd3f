"""The workers of one study: started where there is room, given up when they die, hang or differ, and replaced.

Knows: what a worker must do before it takes chunks, which nodes it was of no use on, and since when there has been no
room. Does not know: which chunk goes where (``dispatch``), or how often one may fail.

A node where loading fails with an error of ours (no such file, no such model, another version) is left alone from then
on; any other failure to load is tried a few times, ever more slowly. When no node is left, the first cause is raised.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray

from scheduler_search.cluster.asking import within
from scheduler_search.cluster.dispatch import Unit
from scheduler_search.cluster.events import Report, WorkerJoined, WorkerLogged, WorkerLost
from scheduler_search.cluster.member import Call, DeadWorkerError, Member, Method
from scheduler_search.cluster.room import Needs, Room
from scheduler_search.cluster.troubles import Troubles
from scheduler_search.cluster.worker import Answer, Described, Fault, Hello, Maker, Worker
from scheduler_search.errors import ClusterError, WorkerError, WorkerMismatchError
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ModelDescription, SplitName

PATIENCE_SECONDS = 60.0
_FILL_SECONDS = 1.0
_SAY_SECONDS = 5.0
_SAY_AGAIN_SECONDS = 60.0
# Of whoever logs what no worker does.
_CLUSTER = "cluster"


@dataclass(frozen=True)
class Gone:
    """A worker is no more; ``blamed`` is the chunk that it ran, if that is what ended it."""

    worker: str
    blamed: Unit | None
    reason: str


@dataclass(frozen=True)
class Ran:
    """A worker answered for a chunk."""

    worker: str
    unit: Unit
    answer: Answer


class Pool:
    """Starts and watches workers whenever ``step`` is called, and only then.

    Args:
        patience: seconds without any node that could hold a worker after which there is an error.
    """

    def __init__(
        self, definition: StudyDefinition, needs: Needs, room: Room, make: Maker, report: Report, patience: float
    ) -> None:
        self.report = report
        self.model: ModelDescription | None = None
        self._workers = definition.workers
        self._text = definition.to_json()
        self._needs = needs
        self._room = room
        self._make = make
        self._patience = patience
        self._members: dict[str, Member] = {}
        self._described: dict[SplitName, Described] = {}
        self._happened: list[Gone | Ran] = []
        self._troubles = Troubles(definition.workers.attempts)
        self._started = 0
        self._filled = -_FILL_SECONDS
        self._roomy = self._placed = time.monotonic()

    @property
    def ready(self) -> list[str]:
        """Workers that take chunks, in the order in which they were started."""
        return [name for name, member in self._members.items() if member.ready]

    @property
    def device_bytes(self) -> int:
        """Most device memory that a worker of now had allocated."""
        return max((member.device_bytes for member in self._members.values()), default=0)

    def node(self, worker: str) -> str:
        """The machine of a worker."""
        return self._members[worker].node

    def happened(self) -> list[Gone | Ran]:
        """What happened since this was last asked."""
        happened, self._happened = self._happened, []
        return happened

    def run(self, worker: str, unit: Unit) -> None:
        """Have a worker run a chunk."""
        self._members[worker].run(unit, time.monotonic())

    def withdraw(self, worker: str, unit: Unit | None = None) -> None:
        """Take back what a worker has queued."""
        if worker in self._members:
            self._members[worker].withdraw(unit)

    def wait(self) -> None:
        """Until a worker takes chunks.

        Raises:
            SchedulerSearchError: there will never be one.
        """
        while not self.ready:
            self.step(_FILL_SECONDS)

    def describe(self, split: SplitName) -> Described:
        """A split as the first worker prepared it; all others must agree."""
        if split not in self._described:
            worker, described = self._ask("describe", split, refuse=True)
            self._described[split] = described
            for member in self._members.values():
                if member.hello is not None and member.name != worker:
                    member.ask("adopt", described, now=time.monotonic())
        return self._described[split]

    def ask(self, method: Method, *arguments: object) -> Any:
        """What any worker answers; asks others, a few times, where one fails."""
        return self._ask(method, *arguments, refuse=False)[1]

    def stop(self) -> None:
        """End all workers."""
        for member in self._members.values():
            member.kill()
        self._members.clear()

    def step(self, seconds: float) -> None:
        """Take every answer that is there, after waiting for one at most so long; look after the workers.

        Raises:
            SchedulerSearchError: there is no worker, and never will be.
        """
        try:
            self._fill()
            self._wait_for_one(seconds)
            while ready := self._answered():
                for member in ready:
                    self._take(member)
            self._end_overdue()
        except ray.exceptions.RayError as error:
            raise ClusterError(
                "the Ray cluster must answer while a study runs on it",
                actual=f"{type(error).__name__}: {error}",
                remedy="resume the study when the cluster is back, or on another",
            ) from error

    def _ask(self, method: Method, *arguments: object, refuse: bool) -> tuple[str, Any]:
        """(worker, value); ``refuse`` to do without a worker that answers with an error of ours."""
        failures = 0
        while True:
            self.wait()
            member = min((self._members[name] for name in self.ready), key=lambda one: one.load)
            call = member.ask(method, *arguments, now=time.monotonic())
            while call.answer is None and member.name in self._members:
                self.step(_FILL_SECONDS)
            if call.answer is not None and call.answer.fault is None:
                return member.name, call.answer.value
            fault = call.answer.fault if call.answer is not None else None
            if fault is not None and fault.error is not None:
                if not refuse:
                    raise fault.error
                self._refuse(member, fault)
                continue
            failures += 1
            if failures >= self._workers.attempts:
                raise _unanswered(method, member, fault)

    # Starting

    def _fill(self) -> None:
        """Start workers where there is room, now and then."""
        now = time.monotonic()
        if now - self._filled < _FILL_SECONDS:
            return
        self._filled = now
        avoided = self._troubles.avoided
        places = within(lambda: self._room.places(avoided))
        room = sum(places.values())
        self._check_hope(room, now)
        if self._troubles.pausing(now):
            return
        wanted = self._wanted(room)
        share = max(1, min(max(places.values(), default=1), wanted))
        for _ in range(wanted - len(self._members)):
            self._start(share, now)

    def _wanted(self, room: int) -> int:
        """Workers at once. Those asked for beyond the room there is wait for nodes that an autoscaler starts."""
        if not self._patience or not self._room.may_grow:
            return min(room, self._workers.count or room)
        return self._workers.count or max(room, 1)

    def _start(self, share: int, now: float) -> None:
        self._started += 1
        name = f"worker-{self._started}"
        options = self._room.options(self._troubles.avoided, [one.bundle for one in self._members.values()])
        strategy = options.get("scheduling_strategy")
        bundle = getattr(strategy, "placement_group_bundle_index", None)
        actor = (
            ray.remote(Worker)
            .options(
                num_cpus=self._needs.cpus,
                num_gpus=self._needs.gpus,
                max_restarts=0,
                max_task_retries=0,
                **options,
            )
            .remote(self._text, share, self._make)
        )
        member = Member(name, actor, bundle)
        member.ask("where", now=now)
        member.ask("hello", now=now)
        self._members[name] = member

    def _check_hope(self, room: int, now: float) -> None:
        """Raise where there is no worker and no node for one, and say so where all nodes are taken."""
        if any(member.where is not None for member in self._members.values()):
            self._roomy = self._placed = now
            return
        if self._troubles.everywhere or (self._troubles.any_hopeless and room == 0):
            raise self._troubles.cause()
        if room > 0:
            self._roomy = now
        elif now - self._roomy >= self._patience:
            raise ClusterError(
                "a node of the cluster must have what one worker needs",
                actual=self._room.describe(),
                place=f"a worker needs {self._needs}",
                remedy="start such a node, or ask for less with cpus and gpus in [workers]",
            )
        if now - self._placed >= _SAY_SECONDS:
            self._placed = now + _SAY_AGAIN_SECONDS
            text = f"waiting for {self._needs}; the cluster has {self._room.describe()}"
            self.report(WorkerLogged(_CLUSTER, "warning", text))

    # Watching

    def _heads(self) -> Mapping[Any, Member]:
        return {member.head.reference: member for member in self._members.values() if member.head is not None}

    def _wait_for_one(self, seconds: float) -> None:
        heads = self._heads()
        if heads:
            ray.wait(list(heads), num_returns=1, timeout=seconds, fetch_local=False)
        else:
            time.sleep(min(seconds, _FILL_SECONDS))

    def _answered(self) -> list[Member]:
        heads = self._heads()
        if not heads:
            return []
        references, _ = ray.wait(list(heads), num_returns=len(heads), timeout=0)
        return [heads[reference] for reference in references]

    def _take(self, member: Member) -> None:
        head = member.head
        assert head is not None
        try:
            call = member.take(time.monotonic())
        except DeadWorkerError as error:
            self._lose(member, head.unit, str(error))
            return
        answer = call.answer
        assert answer is not None
        for line in answer.lines:
            self.report(WorkerLogged(member.name, line.level, line.text))
        if call.unit is not None and not call.withdrawn:
            self._happened.append(Ran(member.name, call.unit, answer))
        elif call.method in ("where", "hello", "adopt"):
            self._advance(member, call, answer)

    def _advance(self, member: Member, call: Call, answer: Answer) -> None:
        """A worker is a step nearer to taking chunks, or failed in it."""
        if answer.fault is not None:
            self._refuse(member, answer.fault)
        elif call.method == "where":
            member.where = answer.value
        elif call.method == "hello":
            self._greet(member, answer.value)
        if member.hello is not None and member.head is None and not member.ready and member.name in self._members:
            member.ready = True
            self._troubles.forget(member.node_id)
            self.report(WorkerJoined(member.name, member.node, member.hello.device))

    def _greet(self, member: Member, hello: Hello) -> None:
        differences = list(_differences(self.model, hello))
        if differences:
            error = WorkerMismatchError(
                "every worker of a study must run the same model with the same software",
                actual="; ".join(differences),
                place=f"{member.name} on {member.node}",
                remedy="bring model files and installed packages of all nodes to the same state",
            )
            self._refuse(member, Fault(error, str(error), ""))
            return
        self.model = self.model or hello.model
        member.hello = hello
        for described in self._described.values():
            member.ask("adopt", described, now=time.monotonic())

    def _end_overdue(self) -> None:
        now, limit = time.monotonic(), self._workers.chunk_timeout
        for member in [one for one in self._members.values() if one.overdue(now, limit)]:
            head = member.head
            member.kill()
            self._lose(member, head.unit if head is not None else None, f"it took longer than {limit:g} s for a chunk")

    def _refuse(self, member: Member, fault: Fault) -> None:
        """Do without a worker that cannot take chunks."""
        member.kill()
        self._lose(member, None, fault.text, fault)

    def _lose(self, member: Member, blamed: Unit | None, reason: str, fault: Fault | None = None) -> None:
        """``fault`` is that of a worker that cannot take chunks."""
        if self._members.pop(member.name, None) is None:
            return
        now = time.monotonic()
        if fault is not None or not member.ready:
            error = fault.error if fault is not None else None
            self._troubles.add(member.node_id, f"{reason} ({member.name} on {member.node})", error, now)
        member.withdraw()
        # Its place is filled at the next step.
        self._filled = -_FILL_SECONDS
        self._happened.append(Gone(member.name, blamed, reason))
        self.report(WorkerLost(member.name, member.node, reason))


def _unanswered(method: Method, member: Member, fault: Fault | None) -> WorkerError:
    return WorkerError(
        f"a worker must answer to {method}",
        actual=fault.text if fault is not None else "workers that died",
        place=f"{member.name} on {member.node}",
        remedy="see the log of the study",
    )


def _differences(model: ModelDescription | None, hello: Hello) -> Iterator[str]:
    """What a worker has that the first one had not."""
    ours = version("scheduler-search")
    if hello.version != ours:
        yield f"scheduler-search {hello.version} instead of {ours}"
    if model is None or hello.model == model:
        return
    here = dict(model.environment)
    there = dict(hello.model.environment)
    changed = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    yield from (f"{name} {there.get(name)} instead of {here.get(name)}" for name in changed)
    if not changed:
        yield f"other weights or another shape of {hello.model.identity.id}"
