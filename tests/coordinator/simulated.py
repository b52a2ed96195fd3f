"""A model without a model: scores follow from keep counts by a rule that the test chooses.

It stands in for the executor so that laws of the coordinator can be tested on hundreds of studies in seconds. The
integration tests run the same coordinator on the real testbed model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from scheduler_search.schedule.cost import DecoderShape, ModelShape, VisionShape
from scheduler_search.schedule.values import ModelIdentity, Reduction
from scheduler_search.study.values import ChunkResult, ChunkTask, ModelDescription, SplitDescription, SplitName

LAYERS = 12
TOWER_LAYERS = 6
VISION_TOKENS = 16
TOWER = VisionShape(TOWER_LAYERS, 8, 2, 16, VISION_TOKENS, 12, VISION_TOKENS, used_layers=5)

# (sample, keep counts of all layers) -> score
ScoreOf = Callable[[int, tuple[int, ...]], float]


def thresholds(sample: int, counts: tuple[int, ...]) -> float:
    """Right where every layer keeps what the sample needs there; needs shrink with depth and differ by sample."""
    needed = [max(0, (sample * 7 + 3) % 13 - layer) for layer in range(LAYERS)]
    return float(all(count >= need for count, need in zip(counts, needed, strict=True)))


class SimulatedExecutor:
    """Implements ``study.values.Executor`` over a score function; a ``tower`` costs something and scores nothing."""

    def __init__(
        self,
        score_of: ScoreOf = thresholds,
        samples: int = 40,
        chunk_size: int = 16,
        tower: VisionShape | None = None,
    ) -> None:
        self._tower = tower
        self._score_of = score_of
        self._samples = samples
        self._chunk_size = chunk_size
        self.executed: list[ChunkTask] = []

    def model(self) -> ModelDescription:
        tower_layers = 0 if self._tower is None else self._tower.layers
        identity = ModelIdentity("simulated", "main", "Simulated", LAYERS, tower_layers, "sha256:" + "0" * 64)
        decoder = DecoderShape(LAYERS, 8, 2, 2, 4, 16)
        return ModelDescription(identity, ModelShape(decoder, self._tower, (8, 8), 32), (("device", "none"),))

    def split(self, name: SplitName) -> SplitDescription:
        return SplitDescription(
            name=name,
            digest=f"sha256:{name}",
            context_digest=f"sha256:context-{name}",
            chunk_size=self._chunk_size,
            vision_tokens=(VISION_TOKENS,) * self._samples,
            text_tokens=(5,) * self._samples,
        )

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        for task in tasks:
            self.executed.append(task)
            yield ChunkResult(task, self._scores(task))

    def prefill_milliseconds(self, split: SplitName, reductions: Sequence[Reduction]) -> tuple[float, ...]:
        del split
        return tuple(1.0 + sum(reduction.keep_rates) for reduction in reductions)

    def close(self) -> None:
        return None

    def _scores(self, task: ChunkTask) -> tuple[float, ...]:
        start = task.chunk * self._chunk_size
        shift = {"search": 0, "validation": 1000, "test": 2000}[task.split]
        counts = task.reduction.counts(VISION_TOKENS)
        return tuple(
            self._score_of(sample + shift, counts)
            for sample in range(start, min(start + self._chunk_size, self._samples))
        )
