"""What ``schedules/README.md`` tells other programs is true: its code is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scheduler_search.schedule.counts import keep_count

README = Path(__file__).parents[2] / "schedules" / "README.md"
CORPUS = Path(__file__).parents[1] / "golden" / "schedules"


def digest_check() -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if "hashlib" in block)


@pytest.mark.parametrize("name", ["searched", "unvalidated", "entry", "multilingual"])
def test_digest_check_accepts_our_documents(name: str) -> None:
    exec(digest_check(), {"path": CORPUS / "valid" / f"{name}.json"})


@pytest.mark.parametrize("name", ["digest-wrong", "record-digest-wrong"])
def test_digest_check_refuses_changed_documents(name: str) -> None:
    with pytest.raises(AssertionError):
        exec(digest_check(), {"path": CORPUS / "invalid" / f"{name}.json"})


def test_count_of_the_example() -> None:
    assert keep_count(0.1, 576) == 58
