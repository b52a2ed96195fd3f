"""Which samples of a chunk run as one batch: those whose lengths are alike, so that little is padded.

Knows: the rule. It looks at the lengths alone, so that a chunk is the same batches wherever and with whatever it runs.
Does not know: models, samples.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler_search.study.values import SplitName

# Part of the key of every evaluation: the last bits of a score depend on the batch that it was computed in.
LAYOUT_VERSION = 1

# Split, chunk and part of the chunk: where a batch is in a study.
Place = tuple[SplitName, int, int]


def parts_of(lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Rows of the parts of a chunk, the longest samples' part first, rows in the order of the chunk.

    From long to short, a sample that is shorter than 3/4 of the longest of the running part begins the next one. So
    less than a quarter of a batch is padding, and a chunk whose lengths are alike is one part.

    Args:
        lengths: tokens of each sample, text and vision.
    """
    parts: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if parts and 4 * lengths[row] >= 3 * lengths[parts[-1][0]]:
            parts[-1].append(row)
        else:
            parts.append([row])
    return tuple(tuple(sorted(part)) for part in parts)


def padding(lengths: Sequence[int], parts: Sequence[Sequence[int]]) -> int:
    """Padding tokens of the parts."""
    return sum(max(lengths[row] for row in part) * len(part) for part in parts) - sum(lengths)
