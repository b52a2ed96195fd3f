"""Timing of variants side by side: prefill, time to first token, decoding, memory.

Every round runs all variants, each round beginning with another one, so that whatever else the machine does meets all
alike. A ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from benchmarks.bare import bare_cut
from benchmarks.workload import VISION_TOKENS, Variant
from scheduler_search.runtime import ScheduleHandle, apply_reduction
from scheduler_search.runtime.cache import cache_bytes
from scheduler_search.schedule.counts import keep_counts

T = TypeVar("T")
ClockName = Literal["wall", "process"]


@dataclass(frozen=True)
class Seconds:
    """One duration by both clocks. ``process`` is processor time of all threads; on a GPU only ``wall`` means much."""

    wall: float
    process: float

    def of(self, clock: ClockName) -> float:
        """By one of the clocks."""
        return self.wall if clock == "wall" else self.process


@dataclass
class Record:
    """What was measured of one variant at one batch size, a list entry per round that measured it."""

    prefill: list[Seconds] = field(default_factory=list)
    first_token: list[Seconds] = field(default_factory=list)
    decode: list[Seconds] = field(default_factory=list)  # per token
    kv_bytes: int = 0
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Rounds:
    """How often everything runs, and what runs beside the prefill in each of the first ``generating`` rounds."""

    prefill: int
    generating: int
    decode_tokens: int


def measure(model: Any, prompt: dict[str, Any], variants: Sequence[Variant], rounds: Rounds) -> list[Record]:
    """Records of all variants on one prompt, after an untimed prefill of the first and the last."""
    records = [Record() for _ in variants]
    with torch.inference_mode():
        for variant in (variants[0], variants[-1]):
            with _hooked(model, prompt, variant):
                model(**prompt, logits_to_keep=1, use_cache=True)
        for turn in range(rounds.prefill):
            for offset in range(len(variants)):
                index = (turn + offset) % len(variants)
                with _hooked(model, prompt, variants[index]) as handle:
                    cache, logits = _measure_prefill(model, prompt, handle, records[index])
                    if turn < rounds.generating:
                        _measure_generation(model, prompt, cache, logits, records[index], rounds.decode_tokens)
    return records


def _hooked(
    model: Any, prompt: dict[str, Any], variant: Variant
) -> contextlib.AbstractContextManager[ScheduleHandle | None]:
    if variant.rates is None:
        return contextlib.nullcontext()
    if variant.bare:
        text_tokens = prompt["input_ids"].shape[1] - VISION_TOKENS
        return bare_cut(model, [count + text_tokens for count in keep_counts(variant.rates, VISION_TOKENS)])
    return apply_reduction(model, variant.reduction())


def _measure_prefill(
    model: Any, prompt: dict[str, Any], handle: ScheduleHandle | None, record: Record
) -> tuple[Any, torch.Tensor]:
    """Add one prefill to the record; its cache and last logits."""
    device, layers = prompt["input_ids"].device, model.config.text_config.num_hidden_layers
    _reset_peak(device)
    output, seconds = timed(lambda: model(**prompt, logits_to_keep=1, use_cache=True), device)
    record.prefill.append(seconds)
    record.peak_bytes = _peak(device)
    cache = output.past_key_values
    record.kv_bytes = sum(cache_bytes(cache, layers)) if handle is None else handle.report().kv_bytes
    return cache, output.logits


def _measure_generation(
    model: Any, prompt: dict[str, Any], cache: Any, logits: torch.Tensor, record: Record, tokens: int
) -> None:
    """Add decoding on a prefill's cache, and a ``generate`` of one token from the prompt."""
    device = prompt["input_ids"].device
    _, seconds = timed(lambda: _decode(model, cache, logits, tokens), device)
    record.decode.append(Seconds(seconds.wall / tokens, seconds.process / tokens))
    _, seconds = timed(lambda: model.generate(**prompt, max_new_tokens=1, do_sample=False), device)
    record.first_token.append(seconds)


def _decode(model: Any, cache: Any, logits: torch.Tensor, tokens: int) -> None:
    """Greedy decoding on the cache of a prefill."""
    for _ in range(tokens):
        chosen = logits[:, -1].argmax(-1, keepdim=True)
        logits = model(input_ids=chosen, past_key_values=cache, use_cache=True).logits


def timed(function: Callable[[], T], device: torch.device) -> tuple[T, Seconds]:
    """What ``function`` returns, and how long it took until the device was done with it."""
    _synchronise(device)
    wall, process = time.perf_counter(), time.process_time()
    result = function()
    _synchronise(device)
    return result, Seconds(time.perf_counter() - wall, time.process_time() - process)


def milliseconds(durations: Sequence[Seconds], clock: ClockName) -> float:
    """Median."""
    return 1000 * statistics.median(seconds.of(clock) for seconds in durations)


def speed_up(vanilla: Sequence[Seconds], other: Sequence[Seconds], clock: ClockName) -> float:
    """Median over rounds of vanilla time over the other's."""
    pairs = zip(vanilla, other, strict=True)
    return statistics.median(base.of(clock) / seconds.of(clock) for base, seconds in pairs)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int | None:
    """Most bytes allocated since the reset, weights included; None where torch does not count them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
