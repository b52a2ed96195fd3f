"""The canonical form of JSON values and its digest: what two equal documents have in common, whoever wrote them.

Knows: sorted keys, no white space, UTF-8, floats as Python's ``repr`` (the shortest text that reads back as the same
double). Does not know: what the values mean.
"""

from __future__ import annotations

import hashlib
import json


def canonical_json(value: object) -> str:
    """The one text of a JSON value; ValueError for NaN and infinities, which JSON does not have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: object) -> str:
    """``sha256:`` and the hexadecimal SHA-256 of the canonical text in UTF-8."""
    return "sha256:" + hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()
