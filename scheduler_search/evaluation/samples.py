"""One visual question, and the digests that say when two of them are the same.

Knows: what a sample is made of. Does not know: where it was read from, or which split it is in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scheduler_search.schedule.canonical import digest_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Sample:
    """A question about an image with the answers that count as right.

    Args:
        id: where the sample came from, for messages ("vqa.jsonl, line 3").
        answers: none for a sample without labels.
        image_digest: over the content of the image; samples with equal digests are never in two splits.
        load_image: opens the image, RGB.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    image_digest: str
    load_image: Callable[[], Image] = field(compare=False, repr=False)

    def content(self) -> list[object]:
        """Everything of the sample that can change a score, as JSON: the id is not among it."""
        return [self.image_digest, self.question, list(self.answers)]


def digest_of_bytes(content: bytes) -> str:
    """``sha256:`` over the bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def split_digest(samples: Iterable[Sample]) -> str:
    """Digest over the contents of the samples in their order."""
    return digest_of([sample.content() for sample in samples])
