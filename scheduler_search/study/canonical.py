"""Canonical JSON and its digest: the one form in which a value of a study is compared.

Knows: how JSON text is made unique. Does not know: what is in it.
"""

from __future__ import annotations

import hashlib
import json


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(value: object) -> str:
    """``sha256:`` and the hexadecimal digest of the canonical JSON in UTF-8."""
    return "sha256:" + hashlib.sha256(canonical_json(value).encode()).hexdigest()
