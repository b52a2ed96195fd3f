"""Scoring one chunk under a reduction.

Knows: when one prefill is enough and how an answer is read from it, greedy generation, and the wall time of a prefill.
Does not know: where chunks come from, or what the scores are for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from scheduler_search.errors import UnsupportedError
from scheduler_search.evaluation.batches import Chunk
from scheduler_search.evaluation.metrics import Metric
from scheduler_search.evaluation.models import LoadedModel
from scheduler_search.evaluation.samples import Sample
from scheduler_search.runtime import PrefixRun, apply_prefix, apply_reduction
from scheduler_search.schedule.values import Reduction

# Version of everything in this package that can change a score and has no version of its own.
SCORING_VERSION = 1
REPEATS = 9

Mode = Literal["prefill", "generate"]


def answer_mode(samples: Iterable[Sample], tokenizer: Any, metric: Metric, max_new_tokens: int) -> Mode:
    """``prefill`` where every answer is one token, so that the first generated token says it all; else ``generate``.

    An answer is one token if the tokenizer gives one known id for it whose text the metric takes for the answer.
    """
    if max_new_tokens == 1:
        return "prefill"
    answers = sorted({answer for sample in samples for answer in sample.answers})
    return "prefill" if all(_is_one_token(answer, tokenizer, metric) for answer in answers) else "generate"


def _is_one_token(answer: str, tokenizer: Any, metric: Metric) -> bool:
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        return False
    return metric.normalise(tokenizer.decode(ids, skip_special_tokens=True)) == metric.normalise(answer)


def predict(
    loaded: LoadedModel,
    chunk: Chunk,
    reduction: Reduction,
    mode: Mode,
    max_new_tokens: int,
    prefix: PrefixRun | None = None,
) -> list[str]:
    """The model's answer to every sample of the chunk, without special tokens.

    Args:
        prefix: of this reduction, where the prefill starts and what is kept of it; None for the whole, keeping nothing.
    """
    _check_features_serve(reduction)
    with torch.inference_mode():
        arguments = chunk.arguments(loaded.model, loaded.device)
        with apply_reduction(loaded.model, reduction) if prefix is None else apply_prefix(loaded.model, prefix):
            if mode == "prefill":
                tokens = first_logits(loaded.model, arguments).argmax(-1, keepdim=True)
            else:
                output = loaded.model.generate(**arguments, max_new_tokens=max_new_tokens, do_sample=False)
                tokens = output[:, arguments["input_ids"].shape[1] :]
    answers: list[str] = loaded.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return answers


def first_logits(model: Any, arguments: dict[str, Any]) -> Tensor:
    """Logits [B, V] of the first generated token: one prefill."""
    logits: Tensor = model(**arguments, logits_to_keep=1, use_cache=False).logits
    return logits[:, -1]


def score(metric: Metric, predictions: Sequence[str], samples: Sequence[Sample]) -> tuple[float, ...]:
    """Scores in [0, 1], one per sample."""
    return tuple(
        float(metric.score(prediction, sample.answers)) for prediction, sample in zip(predictions, samples, strict=True)
    )


def prefill_milliseconds(loaded: LoadedModel, chunk: Chunk, reductions: Sequence[Reduction]) -> tuple[float, ...]:
    """Median wall time, in milliseconds, of the chunk's prefill with a cache, under each reduction.

    The reductions take turns, so that whatever else the machine does meets all of them alike. Vision features are
    ready, and hooks in place, before the clock starts. One untimed round comes first.
    """
    times: list[list[float]] = [[] for _ in reductions]
    with torch.inference_mode():
        arguments = chunk.arguments(loaded.model, loaded.device)
        for repeat in range(REPEATS + 1):
            for reduction, record in zip(reductions, times, strict=True):
                _check_features_serve(reduction)
                with apply_reduction(loaded.model, reduction):
                    seconds = _time(loaded, arguments)
                if repeat > 0:
                    record.append(seconds * 1000)
    return tuple(statistics.median(record) for record in times)


def _time(loaded: LoadedModel, arguments: dict[str, Any]) -> float:
    _synchronise(loaded.device)
    start = time.perf_counter()
    loaded.model(**arguments, logits_to_keep=1, use_cache=True)
    _synchronise(loaded.device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check_features_serve(reduction: Reduction) -> None:
    if reduction.vision is not None:
        raise UnsupportedError(
            "an evaluation must not reduce inside the vision tower: its stored features are the unreduced tower's",
            actual=f"rule {reduction.vision.rule.name!r}",
        )
