"""The tiny trained LLaVA that this project tests itself on, and its synthetic visual questions.

Knows: where the shipped checkpoint is. Importing it loads neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

from scheduler_search.testbed.generator import Question, generate

MODEL_NAME = "tiny-llava"

__all__ = ["MODEL_NAME", "Question", "checkpoint", "generate"]


def checkpoint() -> Path:
    """The directory of the shipped checkpoint with its processor; ``from_pretrained`` loads it."""
    return Path(__file__).resolve().parent / MODEL_NAME
