"""Scores of reductions over a split: recorded chunks are read, missing ones are run and recorded, each once.

Knows: the study database and an executor. Does not know: why a reduction is evaluated, or what follows from its score.
"""

from __future__ import annotations

from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.key import evaluation_key
from scheduler_search.study.values import ChunkTask, Executor, SplitDescription, SplitName


class Evaluations:
    """Per-sample scores by (split, reduction), shared by every trial, study and export that asks for the same thing."""

    def __init__(self, database: StudyDatabase, executor: Executor) -> None:
        self._database = database
        self._executor = executor

    def key(self, split: SplitName, reduction: Reduction) -> str:
        """The evaluation's identity: equal keys mean equal scores (see ``study.key``)."""
        description = self._executor.split(split)
        return evaluation_key(description.context_digest, reduction, description.vision_tokens)

    def scores(self, split: SplitName, reduction: Reduction, shared_layers: int = 0) -> tuple[float, ...]:
        """Scores in [0, 1] of all samples, in the order of the split.

        A chunk is recorded as soon as it is there, so an interruption costs at most the chunks in flight.

        Args:
            shared_layers: a hint for the executor, see ``ChunkTask``; neither scores nor keys depend on it.
        """
        description = self._executor.split(split)
        evaluation = self._record(description, reduction)
        recorded = self._database.chunk_scores(evaluation)
        missing = [
            ChunkTask(split, chunk, reduction, shared_layers)
            for chunk in range(description.chunks)
            if chunk not in recorded
        ]
        for result in self._executor.run(missing):
            self._database.add_chunk(evaluation, result.task.chunk, result.scores)
            recorded[result.task.chunk] = result.scores
        return tuple(score for chunk in range(description.chunks) for score in recorded[chunk])

    def _record(self, split: SplitDescription, reduction: Reduction) -> int:
        return self._database.evaluation(
            key=self.key(split.name, reduction),
            split=split.name,
            split_digest=split.digest,
            reduction=reduction,
            chunks=split.chunks,
        )
