"""What holds for every test: one thread per process, and no deadlines for property tests on shared machines."""

from __future__ import annotations

import os

# Before torch is imported by anything: two test processes with two threads each stall one another on two cores.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from scheduler_search.rule import PLACES, Declaration, Parameter, Stages, registry
from tests.postgres import _studies_database, postgres, postgres_studies_url, postgres_url

__all__ = ["_studies_database", "postgres", "postgres_studies_url", "postgres_url"]

# Files with few and long tests, which wait for processes; the others, many and short, fill the gaps until the end.
_FIRST = ("integration", "cluster", "benchmarks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: not _waits(item.path))


def _waits(path: Path) -> bool:
    folders: Sequence[str] = path.relative_to(Path(__file__).parent).parts
    return folders[0] in _FIRST


@pytest.fixture
def tower_rule(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a rule that is declared for one test, for the tower, the entry and the decoder."""
    stages = dict.fromkeys(PLACES, Stages("random.at_random"))
    seed = Parameter("seed", 0, "of nothing")
    declaration = Declaration("everywhere", 1, stages, (seed,), "this test")
    monkeypatch.setitem(registry._VERSIONS, declaration.name, {1: declaration})
    return declaration.name


settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
