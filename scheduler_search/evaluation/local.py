"""The executor that runs chunks in this process.

Knows: one study definition; loads its data and its model when they are first needed, and keeps every chunk it prepared.
Does not know: the study database, or why a task is run.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version

import torch

from scheduler_search.errors import DataError
from scheduler_search.evaluation import scoring
from scheduler_search.evaluation.batches import Part
from scheduler_search.evaluation.context import attention_name, device_kind, dtype_name
from scheduler_search.evaluation.exhaustion import within_memory
from scheduler_search.evaluation.features import FeatureStore
from scheduler_search.evaluation.fidelity import Reference, ReferenceStore
from scheduler_search.evaluation.known import Known
from scheduler_search.evaluation.layout import Place
from scheduler_search.evaluation.measures import measure_of
from scheduler_search.evaluation.memory import Memory, default_device_memory, default_host_memory, peak_memory
from scheduler_search.evaluation.models import LoadedModel, load_model
from scheduler_search.evaluation.prefixes import PrefixStore
from scheduler_search.evaluation.prepared import PreparedSplit, prepare
from scheduler_search.evaluation.prompts import Prompt, make_prompt
from scheduler_search.evaluation.samples import Sample
from scheduler_search.evaluation.sources import Splits, read_splits
from scheduler_search.evaluation.suitability import check_rule
from scheduler_search.runtime import PrefixRun, can_resume, identify, model_shape, plan_of
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkResult, ChunkTask, ModelDescription, SplitDescription, SplitName


class LocalExecutor:
    """Runs the chunks of one study in this process; implements ``study.values.Executor``.

    Building one sets the process's CPU thread count to ``[workers] threads``. Data are read before the model is loaded.
    Scores do not depend on the order of tasks, and running a task again gives the same scores bit for bit.

    Args:
        prefix_memory: bytes of host memory for what it need not compute again: the prefixes of tasks that share their
            first layers (``PrefixStore``), vision features (``FeatureStore``), and what fidelities are compared with
            (``ReferenceStore``); 0 to keep none. None for that of the study, or else this worker's share of a quarter
            of the memory of this machine. No score depends on it, nor on the device memory of ``[workers] memory``.
        known: splits as another worker of the study described them; see ``expect``.
        share: how many workers of this machine share its memory.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        *,
        prefix_memory: int | None = None,
        known: Mapping[SplitName, SplitDescription] | None = None,
        share: int = 1,
    ) -> None:
        self._definition = definition
        self._known = {name: Known(description) for name, description in (known or {}).items()}
        asked = definition.workers.prefix_bytes if prefix_memory is None else prefix_memory
        self._host_memory = default_host_memory(share) if asked is None else asked
        self._empty_stores()
        self._splits: Splits | None = None
        self._loaded: LoadedModel | None = None
        self._prompt: Prompt | None = None
        self._ready: dict[SplitName, PreparedSplit] = {}
        torch.set_num_threads(definition.workers.threads)

    def model(self) -> ModelDescription:
        """Describe the model; loads it if need be.

        Raises:
            ModelError: it cannot be loaded.
            UnsupportedError: it cannot serve the rule of the study.
        """
        loaded, _ = self._load()
        environment = {
            "torch": version("torch"),
            "transformers": version("transformers"),
            "device": device_kind(loaded.device),
            "dtype": dtype_name(loaded),
            "attention": attention_name(loaded),
            "threads": str(self._definition.workers.threads),
        }
        if loaded.placement is not None:
            environment["device_map"] = loaded.placement.name
        if loaded.encoder is not None:
            environment["text_encoder"] = loaded.encoder.id
        identity = identify(loaded.model, id=loaded.checkpoint.id, revision=loaded.revision)
        return ModelDescription(identity, model_shape(loaded.model.config), tuple(environment.items()))

    def split(self, name: SplitName) -> SplitDescription:
        """Describe a split; reads its data, loads the model and prepares its inputs if need be."""
        return self._prepare(name).description

    def peak_memory(self) -> int:
        """Bytes that tensors took on the GPUs at most, stores included; 0 on a CPU, or before the model is loaded."""
        return 0 if self._loaded is None else sum(map(peak_memory, self._loaded.devices))

    def expect(self, description: SplitDescription, context: Mapping[str, object] | None = None) -> None:
        """Take a split as another worker of the study described it; nothing where it is prepared already.

        From then on its samples go through the processor when their chunk is first run. That model, data and software
        are those of the other worker is checked when the split is next asked for, and the token counts of a chunk when
        it is built; WorkerMismatchError and DataError are then raised for what differs.

        Args:
            context: what the other worker gave as ``context``, so that an error can name what differs.
        """
        if description.name not in self._ready:
            self._known[description.name] = Known(description, context or None)

    def context(self, name: SplitName) -> dict[str, object]:
        """The ingredients of the split's ``context_digest``."""
        return dict(self._prepare(name).context)

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        """Run the tasks one after the other, in the order given; nothing is held between two results.

        Raises:
            ModelError: a chunk does not fit into the memory of the device, even with nothing stored there.
        """
        for task in tasks:
            place = f"chunk {task.chunk} of the {task.split} split"
            yield ChunkResult(task, within_memory(partial(self._values, task), self._memory, place))

    def prefill_milliseconds(self, split: SplitName, reductions: Sequence[Reduction]) -> tuple[float, ...]:
        """Median wall time of the prefill of the split's first chunk under each reduction, measured side by side."""
        loaded, _ = self._load()
        chunk = self._prepare(split).chunks[0]
        measure = partial(scoring.prefill_milliseconds, loaded, chunk, reductions)
        return within_memory(measure, self._memory, f"chunk 0 of the {split} split")

    def close(self) -> None:
        """Release the model and its stores; whatever is asked for next loads them again."""
        spread = self._loaded is not None and self._loaded.placement is not None
        self._splits = self._loaded = self._prompt = None
        self._ready.clear()
        self._empty_stores()
        if spread:
            gc.collect()  # the hooks of accelerate refer to their modules, and these to them
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _values(self, task: ChunkTask) -> tuple[float, ...]:
        """Of the chunk's samples, in the order of the split, whatever the order of its parts."""
        ready = self._prepare(task.split)
        values: dict[int, float] = {}
        for index, part in enumerate(ready.chunks[task.chunk]):
            found = self._part_values(task, index, part, ready)
            values |= dict(zip(part.rows, found, strict=True))
        return tuple(values[row] for row in sorted(values))

    def _part_values(self, task: ChunkTask, index: int, part: Part, ready: PreparedSplit) -> tuple[float, ...]:
        loaded, _ = self._load()
        measure = ready.measure
        prefix = self._prefix_run(task, index, ready, loaded)
        outcome = scoring.run(
            loaded,
            part,
            task.reduction,
            ready.decoding,
            prefix=prefix,
            reference=self._reference((task.split, task.chunk, index), part, ready) if measure.needs_fidelity else None,
            answers=measure.needs_answers,
        )
        if prefix is not None:
            self._prefixes.keep(task, index, prefix)
        return measure.values(outcome, ready.part_samples(task.chunk, index))

    def _prefix_run(self, task: ChunkTask, part: int, ready: PreparedSplit, loaded: LoadedModel) -> PrefixRun | None:
        """None where a part must run whole: see ``can_resume``, and ``PrefixRun.check`` for generation."""
        plan = plan_of(loaded.model, task.reduction, ready.vision_tokens(task.chunk, part))
        generates = ready.decoding.mode == "generate"
        if not self._memory.limit or not can_resume(loaded.model) or (generates and not plan.reduces):
            return None
        return self._prefixes.run(task, part, plan)

    def _reference(self, place: Place, part: Part, ready: PreparedSplit) -> Reference:
        reference = self._references.get(place)
        if reference is None:
            reference = scoring.make_reference(self._load()[0], part, ready.decoding)
            self._references.keep(place, reference)
        return reference

    def _empty_stores(self) -> None:
        """Make stores that share the memory: a quarter for references, where a split of the study needs any."""
        compares = any(measure_of(self._definition, name).needs_fidelity for name in self._definition.data.splits)
        references = self._host_memory // 4 if compares else 0
        self._references = ReferenceStore(references)
        self._memory = Memory(self._host_memory - references)
        self._features, self._prefixes = FeatureStore(self._memory), PrefixStore(self._memory)

    def _load(self) -> tuple[LoadedModel, Prompt]:
        if self._loaded is None or self._prompt is None:
            loaded = load_model(self._definition.model)
            check_rule(loaded, self._definition)
            self._prompt = make_prompt(self._definition.model.prompt, loaded.processor, loaded.checkpoint.id)
            self._loaded = loaded
            asked = self._definition.workers.memory_bytes
            self._memory.use_device(loaded.device, default_device_memory(loaded.device) if asked is None else asked)
        return self._loaded, self._prompt

    def _samples(self, name: SplitName) -> tuple[Sample, ...]:
        if self._splits is None:
            self._splits = read_splits(self._definition)
        if name not in self._splits:
            raise DataError(f"the study must have a {name} split", remedy=f"add {name} = {{ samples = ... }} to [data]")
        return self._splits[name]

    def _prepare(self, name: SplitName) -> PreparedSplit:
        if name not in self._ready:
            samples, known = self._samples(name), self._known.get(name)
            shelf = self._features.shelf
            self._ready[name] = prepare(name, samples, *self._load(), self._definition, shelf=shelf, known=known)
        return self._ready[name]
