"""The values that pass between coordinator, executors and the study database.

Knows: how a split, a model and one chunk of work are described, and the key that identifies an evaluation. Does not
know: how a model is loaded or where scores are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from scheduler_search.schedule.cost import ModelShape
from scheduler_search.schedule.values import ModelIdentity, Reduction

SplitName = Literal["search", "validation", "test"]


@dataclass(frozen=True)
class SplitDescription:
    """One split as an executor sees it.

    Args:
        digest: over the content of every sample (image bytes, question, answers) in order.
        context_digest: over everything but rule and keep counts that can change a score on this split: weights,
            revision, processor, prompt, data content, metric, generation settings, dtype, attention implementation,
            chunk layout, thread count, library versions, device kind.
        chunk_size: samples per chunk; the last chunk may be shorter. Chunk c holds the samples
            ``c * chunk_size .. min((c + 1) * chunk_size, samples) - 1`` of the (already permuted) split.
        vision_tokens: N of every sample, in the order of the split.
        text_tokens: prompt tokens that are not vision tokens, of every sample.
    """

    name: SplitName
    digest: str
    context_digest: str
    chunk_size: int
    vision_tokens: tuple[int, ...]
    text_tokens: tuple[int, ...]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.vision_tokens)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.samples // self.chunk_size)


@dataclass(frozen=True)
class ModelDescription:
    """The model as an executor loaded it. ``environment`` is what a report names: device, dtype, library versions."""

    identity: ModelIdentity
    shape: ModelShape
    environment: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ChunkTask:
    """One unit of work: run chunk ``chunk`` of split ``split`` with ``reduction``.

    ``shared_layers`` and ``branch_layers`` are hints that change no score: so many first layers keep what they keep in
    this task in all tasks that follow, and in some of them. They are not part of what tells tasks apart.
    """

    split: SplitName
    chunk: int
    reduction: Reduction
    shared_layers: int = field(default=0, compare=False)
    branch_layers: int = field(default=0, compare=False)


@dataclass(frozen=True)
class ChunkResult:
    """Scores in [0, 1] of the chunk's samples, in the order of the split."""

    task: ChunkTask
    scores: tuple[float, ...]


class Executor(Protocol):
    """Runs chunks. Results do not depend on which executor ran them, nor in what order."""

    def model(self) -> ModelDescription:
        """Describe the model; loads it if need be."""

    def split(self, name: SplitName) -> SplitDescription:
        """Describe a split; loads its data if need be. DataError if the study has no such split."""

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        """Run the tasks, yielding each result as soon as it is there, in any order.

        Tasks are taken from ``tasks`` one by one, as late as possible: what comes next may depend on the results.
        """

    def prefill_milliseconds(self, split: SplitName, reductions: Sequence[Reduction]) -> tuple[float, ...]:
        """Median wall time of one chunk's prefill under each reduction, measured side by side; () if none can be."""

    def close(self) -> None:
        """Release the model and its stores."""
