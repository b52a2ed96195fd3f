"""Which samples are search, validation and test: split by image, permuted by the study seed.

Knows: how groups of samples with one image are dealt to splits, in which order a split is scored, and that no image is
in two splits. Does not know: where samples come from, or what they are scored with.

Every order is the order of ``sha256(seed, purpose, content)``, so that it depends on the seed and on the contents
alone: neither on the order of lines in a file, nor on names of files, nor on a random generator's version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations

from scheduler_search.errors import DataError
from scheduler_search.evaluation.samples import Sample
from scheduler_search.schedule.canonical import digest_of
from scheduler_search.study.values import SplitName


def permuted(samples: Sequence[Sample], seed: int) -> tuple[Sample, ...]:
    """The samples in the order of the seed; every prefix is a random sample. Equal contents stay next to each other."""
    return tuple(sorted(samples, key=lambda sample: (_order(seed, "sample", digest_of(sample.content())), sample.id)))


def deal(
    samples: Sequence[Sample], sizes: Mapping[SplitName, int], seed: int, place: str
) -> dict[SplitName, tuple[Sample, ...]]:
    """Deal the samples of one data file to splits, image by image, in the order of ``sizes``.

    All samples of an image go to one split. What is left of the last image of a split is not used, so that the splits
    before a changed one stay what they were.

    Raises:
        DataError: too few samples (or images) for the requested numbers.
    """
    groups = _by_image(samples)
    queue = sorted(groups, key=lambda image: _order(seed, "image", image), reverse=True)
    dealt: dict[SplitName, tuple[Sample, ...]] = {}
    for name, size in sizes.items():
        chosen: list[Sample] = []
        while queue and len(chosen) < size:
            chosen.extend(permuted(groups[queue.pop()], seed))
        if len(chosen) < size:
            raise DataError(
                f"the data must have {size} samples for {name} that share no image with another split",
                actual=f"{len(chosen)} left of {len(samples)} samples with {len(groups)} images",
                place=place,
                remedy=f"lower [data] {name} samples or add data",
            )
        dealt[name] = permuted(chosen[:size], seed)
    return dealt


def check_disjoint(splits: Mapping[SplitName, Sequence[Sample]]) -> None:
    """DataError if an image is in two splits."""
    images = {name: {sample.image_digest: sample.id for sample in samples} for name, samples in splits.items()}
    for first, second in combinations(images, 2):
        shared = sorted(images[first].keys() & images[second].keys())
        if shared:
            raise DataError(
                f"{first} and {second} must not share images",
                actual=f"{len(shared)} shared: {images[first][shared[0]]} and {images[second][shared[0]]}",
                remedy="give them different images, or name one file as [data] path and let it be split by image",
            )


def _by_image(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image_digest, []).append(sample)
    return groups


def _order(seed: int, purpose: str, content: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{purpose}\n{content}".encode()).digest()
