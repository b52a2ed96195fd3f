"""``python -m scheduler_search.testbed.train --out DIRECTORY``: the shipped checkpoint, from nothing.

Knows: the recipe (alignment; four layers; growth to twelve) and the command line. Does not know: how a step is made.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from scheduler_search.testbed.alignment import align
from scheduler_search.testbed.loop import Lesson, Stage, train_stage
from scheduler_search.testbed.model import build_model, grow, load_checkpoint, save_checkpoint

EASY = {"attr": 1.0, "where": 1.0, "at": 1.0, "nav": 0.7}
"""The mixture of the first lesson: what needs one look at the image."""


@dataclass(frozen=True)
class Recipe:
    """Steps of the alignment, and the plans of the two stages: four layers, then twelve."""

    alignment_steps: int
    small: Stage
    large: Stage


FULL = Recipe(
    alignment_steps=120,
    small=Stage(
        steps=1700,
        images=32,
        questions=10,
        learning_rate=1e-3,
        warmup=30,
        cooldown=0.3,
        lessons=(Lesson(300, (2, 4), EASY), Lesson(400, (2, 4)), Lesson(700, (3, 6)), Lesson(900, (4, 8))),
    ),
    large=Stage(
        steps=800,
        images=24,
        questions=10,
        learning_rate=7e-4,
        warmup=50,
        cooldown=0.8,
        end_of_answer=True,
        attention_penalty=0.3,
    ),
)

QUICK = Recipe(
    alignment_steps=2,
    small=Stage(steps=3, images=4, questions=4, learning_rate=1e-3, warmup=1, cooldown=0.5),
    large=Stage(
        steps=2, images=2, questions=4, learning_rate=7e-4, warmup=1, cooldown=0.5,
        end_of_answer=True, attention_penalty=0.3,
    ),
)  # fmt: skip
"""Every part of the recipe for a few steps: the result is no model, but it loads."""


def train_small(recipe: Recipe, seed: int, say: Callable[[str], None]) -> LlavaForConditionalGeneration:
    """The aligned and trained four-layer model."""
    model = build_model(layers=4, seed=seed)
    align(model, seed, recipe.alignment_steps, say)
    return train_stage(model, recipe.small, seed, say)


def train_large(
    small: LlavaForConditionalGeneration, stage: Stage, seed: int, say: Callable[[str], None]
) -> LlavaForConditionalGeneration:
    """The twelve-layer model grown from ``small``; its scenes are other ones than those ``small`` saw."""
    return train_stage(grow(small), stage, seed + 100, say)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {line}", flush=True)

    recipe = QUICK if options.quick else FULL
    small = _small(recipe, options.seed, options.small, say)
    stage = replace(recipe.large, attention_penalty=0.0) if options.no_attention_penalty else recipe.large
    model = train_large(small, stage, options.seed, say)
    save_checkpoint(model, options.out)
    say(f"wrote {options.out}; {time.process_time():.0f} s of processor time")


def _small(recipe: Recipe, seed: int, stored: Path | None, say: Callable[[str], None]) -> LlavaForConditionalGeneration:
    """The four-layer model: read from ``stored`` if that exists, else trained (and then written there)."""
    if stored is not None and stored.exists():
        say(f"reading the four-layer model of {stored}")
        return load_checkpoint(stored).train()
    model = train_small(recipe, seed, say)
    if stored is not None:
        model.save_pretrained(stored)
    return model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scheduler_search.testbed.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint to write")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights and training scenes (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--no-attention-penalty", action="store_true", help="the control: stage two without penalty")
    parser.add_argument("--small", type=Path, help="keep the four-layer model here; read it if it is there already")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    return parser


if __name__ == "__main__":
    main()
