"""SIGKILL in studies over rules at the entry and in the tower: the resumed study decides what the undisturbed one does.

``test_kill`` does it for rules in the decoder, more often and at random moments.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from scheduler_search.export import searched_reduction
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase
from tests.integration.commands import Command
from tests.integration.conftest import Cli
from tests.integration.records import Rows, records
from tests.integration.test_kill import chunk_count

pytestmark = pytest.mark.slow

STUDY = """
name = "small"
seed = 3
[model]
id = "testbed:tiny-llava"
device = "cpu"
[data]
source = "testbed"
chunk = 8
search = {{ samples = 32 }}
validation = {{ samples = 32 }}
[rule]
name = "mustdrop"
at = {at}
[search]
first_layer = 6
stride = 6
penalty = 0.2
initial = 2
iterations = 1
"""
KILLED, UNDISTURBED = "sqlite:///killed.db", "sqlite:///undisturbed.db"


def run_until(folder: Path, chunks: int, *command: str) -> None:
    """Run a command and kill it once so many chunks are there."""
    with Path(os.devnull).open("wb") as nothing:
        process = Command("--database", KILLED, *command, folder=folder, output=nothing)
    deadline = time.monotonic() + 120
    while chunk_count(folder / "killed.db") < chunks and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the study ended before it was killed"


def decided(folder: Path, url: str) -> tuple[Reduction, dict[str, Rows]]:
    """What a finished study exports, and all that it decided by."""
    url = url.replace("sqlite:///", f"sqlite:///{folder}/")
    with StudyDatabase.open(url) as database:
        reduction = searched_reduction(database, database.study("small"))
    return reduction, records(url)


@pytest.mark.parametrize("at", ['["entry", "decoder"]', '["vision", "decoder"]'])
def test_killed_and_resumed(cli: Cli, tmp_path: Path, at: str) -> None:
    (tmp_path / "small.toml").write_text(STUDY.format(at=at))
    cli("--database", UNDISTURBED, "launch", "small.toml")
    total = chunk_count(tmp_path / "undisturbed.db")
    run_until(tmp_path, total // 4, "launch", "small.toml")
    run_until(tmp_path, total // 2, "resume", "small", "--take-over")
    cli("--database", KILLED, "resume", "small", "--take-over")
    assert decided(tmp_path, KILLED) == decided(tmp_path, UNDISTURBED)
