"""What holds for every test: one thread per process, files in memory, and no deadlines for property tests.

Knows: what costs time in every test and shows nothing. Does not know: any test.
"""

from __future__ import annotations

import gc
import os
import shutil

# Before torch is imported by anything: two test processes with two threads each stall one another on two cores.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from alembic import util
from hypothesis import settings
from typer import main as typer_main

from scheduler_search.rule import PLACES, Declaration, Parameter, Stages, registry
from tests.command_line import run
from tests.postgres import _studies_database, postgres, postgres_studies_url, postgres_url

__all__ = ["_studies_database", "postgres", "postgres_studies_url", "postgres_url", "run"]

# Whoever is killed loses nothing that the operating system has, on a disk or not: nothing here cuts the power. A study
# that waits for the disk after each of its hundred commits takes twice as long.
_MEMORY = Path("/dev/shm")
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# Files with few and long tests, which wait for processes, and then those with many families of models; the others, many
# and short, fill the gaps until the end.
_TURNS = {"integration": 0, "cluster": 0, "benchmarks": 0, "runtime": 1}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: _turn(item.path))


def _turn(path: Path) -> int:
    folders: Sequence[str] = path.relative_to(Path(__file__).parent).parts
    return _TURNS.get(folders[0], len(_TURNS))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: it is not looked through for garbage, neither meanwhile nor by tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _revisions_read_once() -> Iterator[None]:
    """The files of database versions, ours and Optuna's, which alembic reads anew for every database."""
    original: Callable[..., object] = util.load_python_file
    known = cache(original)

    def load(folder: str | Path, name: str | Path) -> object:
        # `env.py`, beside that folder, does its work as it is read.
        return (known if Path(folder).name == "versions" else original)(folder, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(util, "load_python_file", load)
        yield


@pytest.fixture(scope="session", autouse=True)
def _commands_built_once() -> Iterator[None]:
    """The tree of commands, which every call of the command line in this process builds anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer_main, "get_command", cache(typer_main.get_command))
        yield


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
