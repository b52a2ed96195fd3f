"""What a caller says about its prompts beside the arguments of forward and generate, in with blocks of the handle.

Knows: that each thread says it for itself, and that it ends with its block. Does not know: what is made of it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime.prompts import Asked
from scheduler_search.runtime.refusals import check_vision_mask
from scheduler_search.runtime.views import Beside


class Saying(threading.local):
    """What this thread says."""

    asked: Asked = Asked()


class Blocks:
    """The with blocks of a handle."""

    _pass: Saying

    @contextlib.contextmanager
    def vision_mask(self, mask: torch.Tensor) -> Iterator[None]:
        """Say which of the embeddings that this thread passes as ``inputs_embeds`` are vision tokens.

        Inside the block, ``forward`` and ``generate`` reduce prompts that come as embeddings alone; without it they are
        refused. Later turns and generated tokens need no mask: they are text.

        Args:
            mask: [B, S] bool, True for vision tokens; padding may be either.

        Raises:
            UnsupportedError: a mask of another form; or, when the prompt is read, of another shape.
        """
        check_vision_mask(mask)
        with self._saying(vision=mask):
            yield

    @contextlib.contextmanager
    def tower_views(self, views: Beside | None) -> Iterator[None]:
        """Give what the tower gave beside the features that this thread passes as ``mm_encoder_outputs``.

        Only entry rules that read the tower, and reductions inside it, need it (see ``compute_features``), and images
        that were made smaller in front of it (see ``compute_smaller_features``).
        """
        with self._saying(views=views):
            yield

    @contextlib.contextmanager
    def questions(self, texts: Sequence[str] | None) -> Iterator[None]:
        """Say what is asked about the images of each sample that this thread passes, one text of each, in their order.

        Only entry rules with ``text_features = "clip"`` need it: they are refused without. The text is the question
        alone, without what the chat template puts around it.

        Raises:
            UnsupportedError: one text instead of several; or, when the prompt is read, another number of them.
        """
        if isinstance(texts, str):
            remedy = "pass a list, also of one question"
            raise UnsupportedError("questions are several texts", actual="one", place="handle.questions", remedy=remedy)
        with self._saying(questions=None if texts is None else tuple(texts)):
            yield

    @contextlib.contextmanager
    def _saying(self, **what: object) -> Iterator[None]:
        before = self._pass.asked
        self._pass.asked = replace(before, **what)  # type: ignore[arg-type]  # each block gives what its field takes
        try:
            yield
        finally:
            self._pass.asked = before
