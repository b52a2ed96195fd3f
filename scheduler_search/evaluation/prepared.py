"""A split made ready to run: its samples as batches, how they are answered, and the description of it all.

Knows: how samples, prompt and model become the parts of chunks. Does not know: reductions, or what is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

from scheduler_search.evaluation.batches import Part, make_parts
from scheduler_search.evaluation.context import data_context, model_context, software_context
from scheduler_search.evaluation.features import ShelfOf
from scheduler_search.evaluation.known import Counts, Known
from scheduler_search.evaluation.measures import Measure, measure_of
from scheduler_search.evaluation.models import LoadedModel
from scheduler_search.evaluation.prompts import Prompt
from scheduler_search.evaluation.samples import Sample, split_digest
from scheduler_search.evaluation.scoring import Decoding, answer_mode
from scheduler_search.runtime import views_wanted, vision_tokens
from scheduler_search.schedule.canonical import digest_of
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import SplitDescription, SplitName

Chunk = tuple[Part, ...]


class Chunks(Sequence[Chunk]):
    """The chunks of a split, each built when it is first asked for."""

    def __init__(self, count: int, build: Callable[[int], Chunk]) -> None:
        self._built: list[Chunk | None] = [None] * count
        self._build = build

    def __len__(self) -> int:
        return len(self._built)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Chunk]: ...
    def __getitem__(self, index: int | slice) -> Chunk | Sequence[Chunk]:
        """The chunk of that number; DataError where it is not the one that was described."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        found = self._built[index]
        if found is None:
            found = self._built[index] = self._build(range(len(self))[index])
        return found

    @property
    def built(self) -> tuple[int, ...]:
        """Numbers of the chunks that were asked for."""
        return tuple(index for index, chunk in enumerate(self._built) if chunk is not None)


@dataclass(frozen=True)
class PreparedSplit:
    """A split with its batches. ``context``: the ingredients of its ``context_digest``."""

    samples: tuple[Sample, ...]
    chunks: Chunks
    decoding: Decoding
    measure: Measure
    context: dict[str, object]
    description: SplitDescription

    def vision_tokens(self, chunk: int, part: int) -> tuple[int, ...]:
        """N of the samples of a part."""
        start = chunk * self.description.chunk_size
        return tuple(self.description.vision_tokens[start + row] for row in self.chunks[chunk][part].rows)

    def part_samples(self, chunk: int, part: int) -> tuple[Sample, ...]:
        """The samples of a part."""
        start = chunk * self.description.chunk_size
        return tuple(self.samples[start + row] for row in self.chunks[chunk][part].rows)


def prepare(
    name: SplitName,
    samples: tuple[Sample, ...],
    loaded: LoadedModel,
    prompt: Prompt,
    definition: StudyDefinition,
    *,
    shelf: ShelfOf | None = None,
    known: Known | None = None,
) -> PreparedSplit:
    """Make a split ready; its samples go through the processor chunk by chunk, now, or when a chunk is first run.

    Args:
        shelf: where vision features are; by default each batch keeps its own.
        known: the split as another worker described it, so that only chunks that are run need be built.

    Raises:
        WorkerMismatchError: this is not the split that is known.
    """
    measure = measure_of(definition, name)
    mode = answer_mode(samples, loaded.processor.tokenizer, measure.metric, definition.data.max_new_tokens)
    decoding, digest = Decoding(mode, definition.data.max_new_tokens), split_digest(samples)
    context = _context(digest, decoding, measure, loaded, prompt, definition)
    if known is not None:
        known.check(context, len(samples))
    chunks = _chunks(name, samples, loaded, prompt, definition, shelf, known)
    if known is None:
        found = [_token_counts(chunk, loaded) for chunk in chunks]
        vision, text = (tuple(count for one in found for count in one[kind]) for kind in (0, 1))
        description = SplitDescription(name, digest, digest_of(context), definition.data.chunk, vision, text)
    else:
        description = known.description
    return PreparedSplit(samples, chunks, decoding, measure, context, description)


def _context(
    digest: str,
    decoding: Decoding,
    measure: Measure,
    loaded: LoadedModel,
    prompt: Prompt,
    definition: StudyDefinition,
) -> dict[str, object]:
    return {
        **model_context(loaded, prompt),
        **software_context(definition.workers.threads),
        **data_context(
            split_digest=digest,
            chunk_size=definition.data.chunk,
            measure=measure,
            decoding=decoding,
            end_tokens=loaded.model.generation_config.eos_token_id,
        ),
    }


def _chunks(
    name: SplitName,
    samples: tuple[Sample, ...],
    loaded: LoadedModel,
    prompt: Prompt,
    definition: StudyDefinition,
    shelf: ShelfOf | None,
    known: Known | None,
) -> Chunks:
    size = definition.data.chunk
    rule = definition.rule_at("entry") if "entry" in definition.places else None
    wanted = views_wanted(loaded.model, rule)

    def build(index: int) -> Chunk:
        part_shelf = None if shelf is None else lambda part: shelf((name, index, part))
        own = samples[index * size : (index + 1) * size]
        chunk = make_parts(own, prompt, loaded.model, part_shelf, wanted, loaded.question_encoder)
        if known is not None:
            known.check_counts(index, _token_counts(chunk, loaded))
        return chunk

    return Chunks(-(-len(samples) // size), build)


def _token_counts(chunk: Chunk, loaded: LoadedModel) -> Counts:
    """Vision tokens and text tokens of every sample of a chunk, in the order of the split."""
    found: dict[int, tuple[int, int]] = {}
    for part in chunk:
        vision = vision_tokens(loaded.model, part.language["input_ids"]).sum(1)
        text = part.language["attention_mask"].sum(1) - vision
        found |= dict(zip(part.rows, zip(vision.tolist(), text.tolist(), strict=True), strict=True))
    counts = [found[row] for row in sorted(found)]
    return tuple(vision for vision, _ in counts), tuple(text for _, text in counts)
