"""Studies small enough for a test, and the command line as a process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Run as Run
from tests.integration import commands

SMALL = """
name = "small"
seed = 3
[model]
id = "testbed:tiny-llava"
device = "cpu"
[data]
source = "testbed"
search = { samples = 48 }
validation = { samples = 64 }
[search]
first_layer = 4
stride = 4
penalty = 0.05
initial = 3
iterations = 4
"""

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run ``scheduler-search`` in an empty folder as a process of its own; ``fresh``, in a new interpreter."""

    def invoke(*arguments: str, check: bool = True, fresh: bool = False) -> subprocess.CompletedProcess[str]:
        done = commands.run(*arguments, folder=tmp_path, fresh=fresh)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return invoke


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A study file of a few seconds."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def read(path: Path) -> dict[str, object]:
    """A JSON object."""
    value = json.loads(path.read_text())
    assert isinstance(value, dict)
    return value
