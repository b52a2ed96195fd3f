"""The executor that runs chunks in this process.

Knows: one study definition; loads its data and its model when they are first needed, and keeps every chunk it prepared.
Does not know: the study database, or why a task is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

from scheduler_search.errors import DataError
from scheduler_search.evaluation import scoring
from scheduler_search.evaluation.batches import Batch, Chunk, make_batch
from scheduler_search.evaluation.context import (
    attention_name,
    data_context,
    device_kind,
    dtype_name,
    model_context,
    software_context,
)
from scheduler_search.evaluation.metrics import metric_of
from scheduler_search.evaluation.models import LoadedModel, load_model
from scheduler_search.evaluation.prefixes import PrefixStore, default_budget
from scheduler_search.evaluation.prompts import Prompt, make_prompt
from scheduler_search.evaluation.samples import Sample, split_digest
from scheduler_search.evaluation.sources import Splits, read_splits
from scheduler_search.runtime import Plan, PrefixRun, can_resume, identify, model_shape, vision_tokens
from scheduler_search.schedule.canonical import digest_of
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkResult, ChunkTask, ModelDescription, SplitDescription, SplitName


@dataclass(frozen=True)
class _Ready:
    """A split with its prepared chunks."""

    samples: tuple[Sample, ...]
    chunks: tuple[Chunk, ...]
    mode: scoring.Mode
    context: dict[str, object]
    description: SplitDescription


class LocalExecutor:
    """Runs the chunks of one study in this process; implements ``study.values.Executor``.

    Building one sets the process's CPU thread count to ``[workers] threads``. Data are read before the model is loaded.
    Scores do not depend on the order of tasks, and running a task again gives the same scores bit for bit.

    Args:
        prefix_memory: bytes of host memory for the prefixes of tasks that share their first layers (``PrefixStore``);
            0 to run every task from the embeddings. No score depends on it.
    """

    def __init__(self, definition: StudyDefinition, *, prefix_memory: int | None = None) -> None:
        self._definition = definition
        self._prefix_memory = default_budget() if prefix_memory is None else prefix_memory
        self._prefixes = PrefixStore(self._prefix_memory)
        self._metric = metric_of(definition.data.metric)
        self._splits: Splits | None = None
        self._loaded: LoadedModel | None = None
        self._prompt: Prompt | None = None
        self._ready: dict[SplitName, _Ready] = {}
        torch.set_num_threads(definition.workers.threads)

    def model(self) -> ModelDescription:
        """Describe the model; loads it if need be. ModelError if it cannot be loaded."""
        loaded, _ = self._load()
        environment = {
            "torch": version("torch"),
            "transformers": version("transformers"),
            "device": device_kind(loaded.device),
            "dtype": dtype_name(loaded),
            "attention": attention_name(loaded),
            "threads": str(self._definition.workers.threads),
        }
        identity = identify(loaded.model, id=loaded.checkpoint.id, revision=loaded.revision)
        return ModelDescription(identity, model_shape(loaded.model.config), tuple(environment.items()))

    def split(self, name: SplitName) -> SplitDescription:
        """Describe a split; reads its data, loads the model and prepares its inputs if need be."""
        return self._prepare(name).description

    def context(self, name: SplitName) -> dict[str, object]:
        """The ingredients of the split's ``context_digest``."""
        return dict(self._prepare(name).context)

    def run(self, tasks: Sequence[ChunkTask]) -> Iterator[ChunkResult]:
        """Run the tasks one after the other, in the order given; nothing is held between two results."""
        for task in tasks:
            yield ChunkResult(task, self._score(task))

    def prefill_milliseconds(self, split: SplitName, reductions: Sequence[Reduction]) -> tuple[float, ...]:
        """Median wall time of the prefill of the split's first chunk under each reduction, measured side by side."""
        loaded, _ = self._load()
        return scoring.prefill_milliseconds(loaded, self._prepare(split).chunks[0], reductions)

    def close(self) -> None:
        """Release the model and its stores; whatever is asked for next loads them again."""
        self._splits = self._loaded = self._prompt = None
        self._ready.clear()
        self._prefixes = PrefixStore(self._prefix_memory)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _score(self, task: ChunkTask) -> tuple[float, ...]:
        loaded, _ = self._load()
        ready = self._prepare(task.split)
        run = self._prefix_run(task, ready, loaded)
        predictions = scoring.predict(
            loaded,
            ready.chunks[task.chunk],
            task.reduction,
            ready.mode,
            self._definition.data.max_new_tokens,
            run,
        )
        if run is not None:
            self._prefixes.keep(task, run)
        start = task.chunk * ready.description.chunk_size
        return scoring.score(self._metric, predictions, ready.samples[start : start + len(predictions)])

    def _prefix_run(self, task: ChunkTask, ready: _Ready, loaded: LoadedModel) -> PrefixRun | None:
        """None where a task must run whole: see ``can_resume``, and ``PrefixRun.check`` for generation."""
        size = ready.description.chunk_size
        vision = ready.description.vision_tokens[task.chunk * size : (task.chunk + 1) * size]
        reduces = Plan.of(task.reduction.keep_rates, vision).reduces
        if not self._prefix_memory or not can_resume(loaded.model) or (ready.mode == "generate" and not reduces):
            return None
        return self._prefixes.run(task, vision)

    def _load(self) -> tuple[LoadedModel, Prompt]:
        if self._loaded is None or self._prompt is None:
            loaded = load_model(self._definition.model)
            self._prompt = make_prompt(self._definition.model.prompt, loaded.processor, loaded.checkpoint.id)
            self._loaded = loaded
        return self._loaded, self._prompt

    def _samples(self, name: SplitName) -> tuple[Sample, ...]:
        if self._splits is None:
            self._splits = read_splits(self._definition)
        if name not in self._splits:
            raise DataError(f"the study must have a {name} split", remedy=f"add {name} = {{ samples = ... }} to [data]")
        return self._splits[name]

    def _prepare(self, name: SplitName) -> _Ready:
        if name not in self._ready:
            self._ready[name] = self._read_and_batch(name)
        return self._ready[name]

    def _read_and_batch(self, name: SplitName) -> _Ready:
        samples = self._samples(name)
        loaded, prompt = self._load()
        size = self._definition.data.chunk
        batches = [
            make_batch(samples[start : start + size], prompt, loaded.model) for start in range(0, len(samples), size)
        ]
        mode = scoring.answer_mode(
            samples, loaded.processor.tokenizer, self._metric, self._definition.data.max_new_tokens
        )
        context = self._context(samples, mode)
        vision, text = _token_counts(batches, loaded)
        description = SplitDescription(name, split_digest(samples), digest_of(context), size, vision, text)
        return _Ready(samples, tuple(Chunk(batch) for batch in batches), mode, context, description)

    def _context(self, samples: tuple[Sample, ...], mode: scoring.Mode) -> dict[str, object]:
        loaded, prompt = self._load()
        data = self._definition.data
        return {
            **model_context(loaded, prompt),
            **software_context(self._definition.workers.threads),
            **data_context(
                split_digest=split_digest(samples),
                chunk_size=data.chunk,
                metric=self._metric,
                mode=mode,
                max_new_tokens=data.max_new_tokens,
                end_tokens=loaded.model.generation_config.eos_token_id,
            ),
        }


def _token_counts(batches: Sequence[Batch], loaded: LoadedModel) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Vision tokens and text tokens of every sample, in order."""
    vision: list[int] = []
    text: list[int] = []
    for batch in batches:
        marks = vision_tokens(loaded.model, batch.input_ids).sum(1)
        vision += marks.tolist()
        text += (batch.language["attention_mask"].sum(1) - marks).tolist()
    return tuple(vision), tuple(text)
