"""Prefill of a LLaVA with and without schedules, next to the speed-up that FLOPs predict.

    python -m benchmarks.prefill                        # a CPU; a few minutes
    python -m benchmarks.prefill --shape llava-1.5-7b   # a GPU, bfloat16

Prints a Markdown table; ``--json`` writes every duration. See ``benchmarks/README.md`` for the columns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import ClockName, Record, Rounds, measure, milliseconds, speed_up
from benchmarks.workload import (
    LAYERS,
    SHAPES,
    VISION_TOKENS,
    Predicted,
    Shape,
    Variant,
    build_model,
    build_prompt,
    predict,
    variants,
)
from scheduler_search.errors import SchedulerSearchError
from scheduler_search.runtime import model_shape
from scheduler_search.schedule.counts import keep_counts

COLUMNS = (
    "batch",
    "schedule",
    "mean keep",
    "prefill ms",
    "speed-up",
    "FLOPs",
    "reached",
    "causal FLOPs",
    "whole FLOPs",
    "first token ms",
    "decode ms/token",
    "KV MB",
    "peak MB",
)
MEAN_KEEP = (0.340, 0.171)  # seed 003, Table 8 (G-Search) and Table 9 (P-Sigmoid) on LLaVA-1.5-7B
K = 1.0
GOAL_CPU, GOAL_GPU = 0.93, 0.95
IDLE_COST = 0.02


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    shape, device, dtype = _shape(options), torch.device(options.device), getattr(torch, options.dtype)
    model = build_model(shape, dtype, device, options.attention)
    text = (options.text_before, options.text_after)
    print(_heading(options, shape), flush=True)
    rows: list[dict[str, Any]] = []
    for batch in shape.batches:
        compared = variants(options.mean_keep, options.k, idle=batch == shape.batches[0])
        prompt = build_prompt(shape, batch, text, dtype, device)
        records = measure(model, prompt, compared, Rounds(options.rounds, options.generating, options.decode_tokens))
        for variant, record in zip(compared, records, strict=True):
            predicted = predict(model_shape(model.config), variant, sum(text))
            rows.append(_row(batch, variant, predicted, record, records[0], options.clock))
            print(_line(list(rows[-1]["cells"].values())), flush=True)
    print(_footer(options, rows))
    if options.json is not None:
        settings = {**vars(options), "json": None, "shape": dataclasses.asdict(shape)}
        options.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefill", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="cpu", help="widths; the flags below change them")
    parser.add_argument("--width", type=_positive)
    parser.add_argument("--heads", type=_positive)
    parser.add_argument("--intermediate", type=_positive)
    parser.add_argument("--vocabulary", type=_positive)
    parser.add_argument("--batches", type=_positive, nargs="+")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--threads", type=_positive, default=1, help="of torch on the CPU")
    parser.add_argument("--rounds", type=_positive, default=5, help="of everything, side by side")
    parser.add_argument("--generating", type=_positive, default=2, help="rounds that time generation too")
    parser.add_argument("--decode-tokens", type=_positive, default=4, help="tokens to decode in such a round")
    parser.add_argument("--text-before", type=_positive, default=35, help="text tokens in front of the image")
    parser.add_argument(
        "--text-after", type=_positive, default=40, help="text tokens behind it, which rank vision tokens"
    )
    parser.add_argument("--mean-keep", type=float, nargs="*", default=MEAN_KEEP, help="over all layers")
    parser.add_argument("--k", type=float, default=K, help="steepness of the sigmoids")
    parser.add_argument("--clock", choices=("wall", "process"), help="of the table; JSON has both")
    parser.add_argument("--json", type=Path, help="write settings, cells and every duration to this file")
    options = parser.parse_args(arguments)
    preset = SHAPES[options.shape]
    options.dtype, options.device = options.dtype or preset.dtype, options.device or preset.device
    options.clock = options.clock or ("process" if options.device == "cpu" else "wall")
    fault = _fault(options)
    if fault:
        parser.error(fault)
    return options


def _fault(options: argparse.Namespace) -> str:
    """What is wrong with the settings taken together; empty if nothing is."""
    shape = _shape(options)
    if shape.width % shape.heads or shape.width // shape.heads % 2:
        return f"the width must be a multiple of twice the heads, but got {shape.width} and {shape.heads}"
    try:
        variants(options.mean_keep, options.k)
        torch.empty(0, device=options.device)
    except (SchedulerSearchError, RuntimeError, AssertionError) as error:  # torch: RuntimeError, or AssertionError
        return str(error).splitlines()[0]
    return ""


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but got {number}")
    return number


def _shape(options: argparse.Namespace) -> Shape:
    names = ("width", "heads", "intermediate", "vocabulary", "dtype", "device")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.batches:
        given["batches"] = tuple(options.batches)
    return dataclasses.replace(SHAPES[options.shape], **given)


def _row(
    batch: int, variant: Variant, predicted: Predicted, record: Record, vanilla: Record, clock: ClockName
) -> dict[str, Any]:
    """One line of the table and everything behind it."""
    counts = keep_counts(variant.keep_rates, VISION_TOKENS)
    faster = speed_up(vanilla.prefill, record.prefill, clock)
    peak = "n/a" if record.peak_bytes is None else f"{record.peak_bytes / 1e6:.0f}"
    cells = (
        str(batch),
        variant.name,
        f"{sum(counts) / len(counts) / VISION_TOKENS:.3f}",
        f"{milliseconds(record.prefill, clock):.0f}",
        f"{faster:.3f}",
        f"{predicted.decoder:.3f}",
        f"{faster / predicted.decoder:.3f}",
        f"{predicted.causal:.3f}",
        f"{predicted.prefill:.3f}",
        f"{milliseconds(record.first_token, clock):.0f}",
        f"{milliseconds(record.decode, clock):.1f}",
        f"{record.kv_bytes / 1e6:.1f}",
        peak,
    )
    return {
        "batch": batch,
        "schedule": variant.name,
        "idle": variant.idle,
        "bare": variant.bare,
        "keep_rates": variant.keep_rates,
        "counts": counts,
        "speed_up": {name: speed_up(vanilla.prefill, record.prefill, name) for name in ("wall", "process")},
        "predicted": dataclasses.asdict(predicted),
        "record": dataclasses.asdict(record),
        "cells": dict(zip(COLUMNS, cells, strict=True)),
    }


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _heading(options: argparse.Namespace, shape: Shape) -> str:
    widths = f"width {shape.width}, {shape.heads} heads, MLP {shape.intermediate}, vocabulary {shape.vocabulary}"
    prompt = f"{VISION_TOKENS} vision + {options.text_before} + {options.text_after} text tokens"
    run = f"{options.dtype} on {shape.device}, {options.attention}, {options.threads} thread, {options.rounds} rounds"
    title = f"LLaVA with {LAYERS} llama layers, {widths}; {prompt}; {run}; torch {torch.__version__}"
    return "\n".join([title, "", _line(COLUMNS), _line(["---"] * len(COLUMNS))])


def _footer(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> str:
    clock = "processor time of the process" if options.clock == "process" else "wall time"
    lines = [
        "",
        f"Times are medians of {clock}. Speed-up: vanilla time over this row's, median of the ratios within a round;",
        "ranking and gathering are in it, the vision tower is not. FLOPs: the decoder's; reached: speed-up over FLOPs.",
        "Causal FLOPs: attention counted by half. Whole FLOPs: with tower, projector and lm head.",
    ]
    if options.device == "cpu":
        lines.append("Peak memory: not available on a CPU, where torch does not count allocations.")
    return "\n".join([*lines, "", *_goals(options, rows)])


def _goals(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each goal: which rows reach it."""
    share = GOAL_CPU if options.device == "cpu" else GOAL_GPU
    idle: dict[str, float] = {}
    reduced: dict[str, float] = {}
    for row in rows:
        if row["schedule"] != "vanilla" and not row["bare"]:
            reached = row["speed_up"][options.clock] / row["predicted"]["decoder"]
            (idle if row["idle"] else reduced)[f"batch {row['batch']} {row['schedule']}"] = reached
    return [
        _goal(f"at least {share:.2f} of the speed-up that FLOPs predict", reduced, share),
        _goal(f"hooks alone cost less than {IDLE_COST:.0%}", idle, 1 / (1 + IDLE_COST)),
    ]


def _goal(goal: str, found: dict[str, float], least: float) -> str:
    missed = [f"{name} ({value:.3f})" for name, value in found.items() if value < least]
    return f"Goal, {goal}: " + (f"missed by {', '.join(missed)}" if missed else "reached by all rows") + "."


if __name__ == "__main__":
    raise SystemExit(main())
