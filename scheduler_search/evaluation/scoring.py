"""Running one part of a chunk under a reduction.

Knows: when one prefill is enough and how an answer is read from it, greedy generation, how both are compared with the
unreduced model's, and the wall time of a prefill. Does not know: where parts come from, or what the answers are for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from scheduler_search.evaluation.batches import Part
from scheduler_search.evaluation.fidelity import Driver, Recorder, Reference, divergence
from scheduler_search.evaluation.measures import Outcome
from scheduler_search.evaluation.metrics import Metric
from scheduler_search.evaluation.models import LoadedModel
from scheduler_search.evaluation.samples import Sample
from scheduler_search.runtime import Beside, PrefixRun, ScheduleHandle, apply_prefix, apply_reduction
from scheduler_search.schedule.values import Reduction

# Version of everything in this package that can change a score and has no version of its own.
SCORING_VERSION = 1
REPEATS = 9

Mode = Literal["prefill", "generate"]
# Arguments of a pass, what rules read of the tower, and the questions, for rules that read these.
_Inputs = tuple[dict[str, Any], Beside | None, tuple[str, ...] | None]


@dataclass(frozen=True)
class Decoding:
    """How answers are read from the model: from one prefill, or by greedy generation of so many tokens."""

    mode: Mode
    max_new_tokens: int


def answer_mode(samples: Sequence[Sample], tokenizer: Any, metric: Metric, max_new_tokens: int) -> Mode:
    """``prefill`` where every answer is one token, so that the first generated token says it all; else ``generate``.

    An answer is one token if the tokenizer gives one known id for it whose text the metric takes for the answer. What
    the answer to a sample without labels is, nobody knows.
    """
    if max_new_tokens == 1:
        return "prefill"
    if not all(sample.answers for sample in samples):
        return "generate"
    answers = sorted({answer for sample in samples for answer in sample.answers})
    return "prefill" if all(_is_one_token(answer, tokenizer, metric) for answer in answers) else "generate"


def _is_one_token(answer: str, tokenizer: Any, metric: Metric) -> bool:
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        return False
    return metric.normalise(tokenizer.decode(ids, skip_special_tokens=True)) == metric.normalise(answer)


def run(
    loaded: LoadedModel,
    part: Part,
    reduction: Reduction,
    decoding: Decoding,
    *,
    prefix: PrefixRun | None = None,
    reference: Reference | None = None,
    answers: bool = True,
) -> Outcome:
    """The model's answers to the samples of a part, without special tokens, and their fidelities.

    Args:
        prefix: of this reduction, where the prefill starts and what is kept of it; None for the whole, keeping nothing.
        reference: what the fidelities are to; None for none.
        answers: whether answers are asked for; without them, a generation is driven along the reference alone.
    """
    model, tokens, fidelities = loaded.model, None, None
    passes_over = prefix is not None and prefix.start is not None  # what the tower gave is in the prefix
    with torch.inference_mode():
        arguments, views = part.inputs(model, loaded.device, None if passes_over else reduction)
        encoder = loaded.question_encoder
        if prefix is None:
            applied = apply_reduction(model, reduction, question_encoder=encoder)
        else:
            applied = apply_prefix(model, prefix, question_encoder=encoder)
        with applied as handle, handle.tower_views(views):
            if decoding.mode == "prefill":
                logits = first_logits(model, arguments)
                tokens = logits.argmax(-1, keepdim=True)
                if reference is not None:
                    fidelities = reference.fidelity([divergence(reference.logits[0].to(logits.device), logits)])
            else:
                if reference is not None:
                    driver = Driver(reference)
                    _generate(model, arguments, decoding, driver)
                    fidelities = reference.fidelity(driver.divergences)
                if answers:
                    tokens = _generate(model, arguments, decoding)
    texts = _texts(loaded, tokens) if answers and tokens is not None else None
    return Outcome(texts, fidelities)


def make_reference(loaded: LoadedModel, part: Part, decoding: Decoding) -> Reference:
    """What the unreduced model answers to the samples of a part, in the way in which ``run`` asks."""
    model = loaded.model
    with torch.inference_mode():
        arguments = part.arguments(model, loaded.device)
        if decoding.mode == "prefill":
            logits = first_logits(model, arguments)
            return Reference.of(logits.argmax(-1, keepdim=True), [logits], [])
        recorder = Recorder()
        tokens = _generate(model, arguments, decoding, recorder)
        ends = model.generation_config.eos_token_id
        return Reference.of(tokens, recorder.logits, [ends] if isinstance(ends, int) else list(ends or []))


def _generate(
    model: Any, arguments: dict[str, Any], decoding: Decoding, processor: LogitsProcessor | None = None
) -> Tensor:
    """Greedy tokens [B, T] behind the prompt."""
    processors = LogitsProcessorList([] if processor is None else [processor])
    output: Tensor = model.generate(
        **arguments, max_new_tokens=decoding.max_new_tokens, do_sample=False, logits_processor=processors
    )
    return output[:, arguments["input_ids"].shape[1] :]


def _texts(loaded: LoadedModel, tokens: Tensor) -> tuple[str, ...]:
    return tuple(loaded.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True))


def first_logits(model: Any, arguments: dict[str, Any]) -> Tensor:
    """Logits [B, V] of the first generated token: one prefill."""
    logits: Tensor = model(**arguments, logits_to_keep=1, use_cache=False).logits
    return logits[:, -1]


def prefill_milliseconds(
    loaded: LoadedModel, chunk: Sequence[Part], reductions: Sequence[Reduction]
) -> tuple[float, ...]:
    """Median wall time, in milliseconds, of a chunk's prefill with a cache, its parts in turn, under each reduction.

    The reductions take turns, so that whatever else the machine does meets all of them alike. Hooks are in place before
    the clock starts. One untimed round comes first.

    What is timed is decoder and lm head: vision features are ready, and so is what an entry rule reads of the tower
    and of the question. Where any of the reductions acts inside the tower, or makes images smaller in front of it, it
    is tower, text encoder, projector, decoder and lm head, for all of them.
    """
    times: list[list[float]] = [[] for _ in reductions]
    with_tower = any(reduction.vision is not None or reduction.image_rate < 1.0 for reduction in reductions)
    with torch.inference_mode():
        ready = [_ready(loaded, chunk, reduction, with_tower=with_tower) for reduction in reductions]
        for repeat in range(REPEATS + 1):
            for reduction, inputs, record in zip(reductions, ready, times, strict=True):
                with apply_reduction(loaded.model, reduction, question_encoder=loaded.question_encoder) as handle:
                    seconds = _time(loaded, handle, inputs)
                if repeat > 0:
                    record.append(seconds * 1000)
    return tuple(statistics.median(record) for record in times)


def _ready(loaded: LoadedModel, chunk: Sequence[Part], reduction: Reduction, *, with_tower: bool) -> list[_Inputs]:
    """The arguments of each part, with pixels or with features, and what rules read beside them."""
    if with_tower:
        return [(part.whole_arguments(loaded.device), None, part.questions) for part in chunk]
    return [(*part.inputs(loaded.model, loaded.device, reduction), None) for part in chunk]


def _time(loaded: LoadedModel, handle: ScheduleHandle, inputs: Sequence[_Inputs]) -> float:
    _synchronise(loaded.devices)
    start = time.perf_counter()
    for arguments, views, questions in inputs:
        with handle.tower_views(views), handle.questions(questions):
            loaded.model(**arguments, logits_to_keep=1, use_cache=True)
    _synchronise(loaded.devices)
    return time.perf_counter() - start


def _synchronise(devices: Sequence[torch.device]) -> None:
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
