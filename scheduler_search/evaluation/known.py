"""Whether a worker sees the split that another one described: same model, data, software, kind of device.

Knows: how two contexts are compared, and how what differs is worded. Does not know: how either was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scheduler_search.errors import DataError, WorkerMismatchError
from scheduler_search.schedule.canonical import canonical_json, digest_of
from scheduler_search.study.values import SplitDescription

Counts = tuple[tuple[int, ...], tuple[int, ...]]
_SHOWN = 6


@dataclass(frozen=True)
class Known:
    """A split as another worker described it.

    Args:
        context: the ingredients of the description's ``context_digest``, so that an error can name those that differ;
            None where only the digest is known.
    """

    description: SplitDescription
    context: Mapping[str, object] | None = None

    def check(self, context: Mapping[str, object], samples: int) -> None:
        """Compare what this worker found with the description, token counts aside.

        Raises:
            WorkerMismatchError: something that can change a score is not the same.
        """
        described = self.description
        if digest_of(dict(context)) == described.context_digest and samples == described.samples:
            return
        found = list(_differences(context, self._other(context)))
        if samples != described.samples:
            found.append(f"samples ({samples} for {described.samples})")
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise WorkerMismatchError(
            "a worker must have the model, data, software and kind of device of the first worker",
            actual="other " + (", ".join(found[:_SHOWN]) + more if found else _unnamed(context)),
            place=f"{described.name} split",
            remedy="let every machine have the same files, libraries and devices, or leave this one out",
        )

    def check_counts(self, chunk: int, counts: Counts) -> None:
        """DataError where the samples of a chunk have other token counts than those described."""
        described = self.description
        rows = slice(chunk * described.chunk_size, (chunk + 1) * described.chunk_size)
        expected = described.vision_tokens[rows], described.text_tokens[rows]
        if counts == expected:
            return
        names = ("vision", "text")
        found = [
            f"{ours} {name} tokens for {theirs} in sample {rows.start + row}"
            for name, one, other in zip(names, counts, expected, strict=True)
            for row, (ours, theirs) in enumerate(zip(one, other, strict=False))
            if ours != theirs
        ]
        raise DataError(
            "a worker must count the tokens that the first worker counted",
            actual=found[0] if found else f"{len(counts[0])} samples for {len(expected[0])}",
            place=f"chunk {chunk} of the {described.name} split",
            remedy="let every machine have the same images and processor",
        )

    def _other(self, context: Mapping[str, object]) -> Mapping[str, object]:
        """The other worker's ingredients; where they are not known, this worker's with what the description says."""
        if self.context is not None:
            return self.context
        return {**context, "data": self.description.digest, "chunk_size": self.description.chunk_size}


def _differences(ours: Mapping[str, object], theirs: Mapping[str, object], above: str = "") -> Iterator[str]:
    """Names of the ingredients that differ, with both values, ours first."""
    for key in sorted({*ours, *theirs}):
        one, other = ours.get(key), theirs.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{above}{key}.")
        elif canonical_json(_plain(one)) != canonical_json(_plain(other)):
            yield f"{above}{key} ({_short(one)} for {_short(other)})"


def _plain(value: object) -> object:
    """As JSON gives it back, so that a tuple is a list."""
    return json.loads(json.dumps(value))


def _short(value: object) -> str:
    text = value if isinstance(value, str) else canonical_json(_plain(value))
    return text if len(text) <= 40 else f"{text[:37]}..."


def _unnamed(context: Mapping[str, object]) -> str:
    """For when only digests can be compared: what this worker has."""
    named = ", ".join(f"{key} {_short(context[key])}" for key in ("device", "dtype", "weights") if key in context)
    return f"context than that of the first worker; here: {named}"
