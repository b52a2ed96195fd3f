"""A split made ready to run: its samples as batches, how they are answered, and the description of it all.

Knows: how samples, prompt and model become the parts of chunks. Does not know: reductions, or what is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler_search.evaluation.batches import Part, make_parts
from scheduler_search.evaluation.context import data_context, model_context, software_context
from scheduler_search.evaluation.measures import Measure, measure_of
from scheduler_search.evaluation.models import LoadedModel
from scheduler_search.evaluation.prompts import Prompt
from scheduler_search.evaluation.samples import Sample, split_digest
from scheduler_search.evaluation.scoring import Decoding, answer_mode
from scheduler_search.runtime import vision_tokens
from scheduler_search.schedule.canonical import digest_of
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import SplitDescription, SplitName

Chunk = tuple[Part, ...]


@dataclass(frozen=True)
class PreparedSplit:
    """A split with its batches. ``context``: the ingredients of its ``context_digest``."""

    samples: tuple[Sample, ...]
    chunks: tuple[Chunk, ...]
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
    name: SplitName, samples: tuple[Sample, ...], loaded: LoadedModel, prompt: Prompt, definition: StudyDefinition
) -> PreparedSplit:
    """Run the samples of a split through the processor, chunk by chunk."""
    data, measure = definition.data, measure_of(definition, name)
    starts = range(0, len(samples), data.chunk)
    chunks = tuple(make_parts(samples[start : start + data.chunk], prompt, loaded.model) for start in starts)
    mode = answer_mode(samples, loaded.processor.tokenizer, measure.metric, data.max_new_tokens)
    decoding, digest = Decoding(mode, data.max_new_tokens), split_digest(samples)
    context = {
        **model_context(loaded, prompt),
        **software_context(definition.workers.threads),
        **data_context(
            split_digest=digest,
            chunk_size=data.chunk,
            measure=measure,
            decoding=decoding,
            end_tokens=loaded.model.generation_config.eos_token_id,
        ),
    }
    vision, text = _token_counts(chunks, loaded)
    description = SplitDescription(name, digest, digest_of(context), data.chunk, vision, text)
    return PreparedSplit(samples, chunks, decoding, measure, context, description)


def _token_counts(chunks: Iterable[Chunk], loaded: LoadedModel) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Vision tokens and text tokens of every sample, in the order of the split."""
    counts: list[tuple[int, int]] = []
    for chunk in chunks:
        found: dict[int, tuple[int, int]] = {}
        for part in chunk:
            vision = vision_tokens(loaded.model, part.language["input_ids"]).sum(1)
            text = part.language["attention_mask"].sum(1) - vision
            found |= dict(zip(part.rows, zip(vision.tolist(), text.tolist(), strict=True), strict=True))
        counts += [found[row] for row in sorted(found)]
    return tuple(vision for vision, _ in counts), tuple(text for _, text in counts)
