"""The text encoder of a study, for rules that compare patches with questions in CLIP's space.

Knows: where it is, and what identifies it. Does not know: how it encodes (``runtime.question``), or who asks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scheduler_search.evaluation.checkpoints import digests, find_checkpoint
from scheduler_search.runtime import QuestionEncoder, load_question_encoder

if TYPE_CHECKING:
    from scheduler_search.study.sections import ModelSection


@dataclass(frozen=True)
class LoadedEncoder:
    """A text encoder that is ready to use.

    Args:
        id: hub id, or the name of the local directory.
        weights: digest of the safetensors files of a directory, or the resolved commit of the hub.
        files: digest of configuration and tokenizer files, or the resolved commit.
    """

    encoder: QuestionEncoder
    id: str
    weights: str
    files: str


def load_encoder(section: ModelSection, dtype: torch.dtype | str) -> LoadedEncoder | None:
    """The text encoder that a study names, on the host; None where it names none.

    Raises:
        ModelError: it cannot be loaded, or is no CLIP model.
    """
    if section.text_encoder is None or section.text_encoder_revision is None:
        return None
    checkpoint = find_checkpoint(section.text_encoder, section.text_encoder_revision, "text_encoder")
    encoder = load_question_encoder(
        checkpoint.source, section.text_encoder_revision, dtype=dtype, offline=checkpoint.offline
    )
    return LoadedEncoder(encoder, checkpoint.id, *digests(checkpoint, encoder.commit))
