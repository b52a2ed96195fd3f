"""Scores by way of the study database: what is recorded is never computed again.

Knows: evaluation keys, chunks, their order, and the executor. Does not know: stages, trials, or what a score is for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from scheduler_search.schedule.values import Reduction
from scheduler_search.search import Race
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.key import evaluation_key
from scheduler_search.study.values import ChunkTask, Executor, SplitDescription, SplitName


@dataclass(frozen=True)
class Request:
    """A reduction to be scored, to the end, or as far as its race goes.

    ``shared_layers`` and ``branch_layers`` are hints for the executor (``ChunkTask``) that change no score and no key.
    """

    reduction: Reduction
    race: Race | None = None
    shared_layers: int = 0
    branch_layers: int = 0

    def task(self, split: SplitName, chunk: int) -> ChunkTask:
        """One chunk of it."""
        return ChunkTask(split, chunk, self.reduction, self.shared_layers, self.branch_layers)


class Stopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """A study was asked to stop, and did after the chunks in flight."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


class Evaluations:
    """Sample scores by (split, reduction), shared by every trial, study and export that asks for the same thing.

    Args:
        stop: asked before each chunk is handed out; once it is true, chunks in flight are recorded and ``Stopped`` is
            raised.
    """

    def __init__(self, database: StudyDatabase, executor: Executor, stop: Callable[[], bool] = never) -> None:
        self._database = database
        self._executor = executor
        self._stop = stop

    def key(self, split: SplitName, reduction: Reduction) -> str:
        """The evaluation's identity: equal keys mean equal scores (see ``study.key``)."""
        description = self._executor.split(split)
        return evaluation_key(description.context_digest, reduction, description.vision_tokens)

    def scores(self, split: SplitName, reduction: Reduction) -> tuple[float, ...]:
        """Scores in [0, 1] of all samples, in the order of the split.

        A chunk is recorded as soon as it is there, so an interruption costs at most the chunks in flight.
        """
        return self.read(split, [Request(reduction)])[0]

    def read(self, split: SplitName, requests: Sequence[Request]) -> tuple[tuple[float, ...], ...]:
        """Scores of each request, in the order of the split, up to the chunk in which its race was given up.

        The requests share the executor: chunk by chunk, all of them, as long as each is in its race. A race reads its
        chunks in order, whatever is recorded already and whoever computed it first; what is computed beyond its end is
        recorded and not read. The reductions must have different keys.

        Raises:
            Stopped: a stop was asked for.
        """
        description = self._executor.split(split)
        readings = {request.reduction: self._reading(description, request) for request in requests}
        tasks = _tasks(split, description.chunks, requests, readings)
        for result in self._executor.run(itertools.takewhile(lambda _: not self._stop(), tasks)):
            reading = readings[result.task.reduction]
            self._database.add_chunk(reading.evaluation, result.task.chunk, result.scores)
            reading.put(result.task.chunk, result.scores)
        if self._stop():
            raise Stopped
        for reading in readings.values():
            if reading.hits:
                self._database.add_hits(reading.evaluation, reading.hits)
        return tuple(reading.scores() for reading in readings.values())

    def _reading(self, split: SplitDescription, request: Request) -> _Reading:
        evaluation, recorded = self._database.take_up(
            key=self.key(split.name, request.reduction),
            split=split.name,
            split_digest=split.digest,
            reduction=request.reduction,
            chunks=split.chunks,
        )
        return _Reading(evaluation, split.chunks, request.race, recorded)


class _Reading:
    """The chunks of one request: what is there, and how far its race has read."""

    def __init__(self, evaluation: int, chunks: int, race: Race | None, recorded: dict[int, tuple[float, ...]]) -> None:
        self.evaluation = evaluation
        self._chunks = chunks
        self._race = race
        self._recorded = recorded
        self._found = frozenset(recorded)
        self._read = 0
        self._given_up = False
        self._advance()

    def needs(self, chunk: int) -> bool:
        """Whether a chunk must still be computed."""
        return chunk not in self._recorded and not self._given_up

    @property
    def hits(self) -> int:
        """Chunks that count and did not have to be computed."""
        return sum(chunk < self._read for chunk in self._found)

    def put(self, chunk: int, scores: tuple[float, ...]) -> None:
        """Take a chunk, in any order."""
        self._recorded[chunk] = scores
        self._advance()

    def scores(self) -> tuple[float, ...]:
        """Of all samples that count."""
        return tuple(score for chunk in range(self._read) for score in self._recorded[chunk])

    def _advance(self) -> None:
        while self._read in self._recorded and not self._given_up:
            scores = self._recorded[self._read]
            self._read += 1
            if self._race is not None and self._race.read(scores) and self._read < self._chunks:
                self._given_up = True


def _tasks(
    split: SplitName, chunks: int, requests: Sequence[Request], readings: dict[Reduction, _Reading]
) -> Iterator[ChunkTask]:
    """What is missing, asked anew before each task: executors take tasks one by one, as they get to them."""
    for chunk in range(chunks):
        for request in requests:
            if readings[request.reduction].needs(chunk):
                yield request.task(split, chunk)
