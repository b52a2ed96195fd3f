"""Commands on a private Ray cluster, as processes: killed and resumed without it, ended cleanly, and quiet."""

from __future__ import annotations

import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler_search.cli.export import export_schedule
from scheduler_search.coordinator import run_study
from scheduler_search.evaluation import LocalExecutor
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import read_study_file
from tests.integration.commands import Command, environment
from tests.integration.conftest import SMALL, Cli, read
from tests.integration.test_kill import chunk_count, trials

pytestmark = pytest.mark.slow

TINY = (
    SMALL.replace("first_layer = 4", "first_layer = 6\nrefine = false")
    .replace("samples = 64", "samples = 32")
    .replace("iterations = 4", "iterations = 2")
)
MARK = "SCHEDULER_SEARCH_TEST_MARK"


class Marked:
    """Commands whose processes of Ray can be told from all others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = f"{MARK}={uuid.uuid4().hex}"

    def start(self, *arguments: str) -> Command:
        name, value = self._mark.split("=")
        command = ("--database", "sqlite:///ray.db", *arguments)
        return Command(*command, folder=self._folder, variables=environment() | {name: value})

    def there(self) -> dict[int, str]:
        """Process ids and command lines."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it ended, or is another user's
                continue
        return found

    def await_end(self) -> None:
        """Ray's workers notice within seconds that their node is gone."""
        deadline = time.monotonic() + 30
        while there := self.there():
            assert time.monotonic() < deadline, there
            time.sleep(0.1)

    def kill(self) -> None:
        for process in self.there():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def marked(tmp_path: Path) -> Iterator[Marked]:
    processes = Marked(tmp_path)
    yield processes
    processes.kill()


def kill_after_a_chunk(marked: Marked, database: Path, study: Path) -> None:
    process = marked.start("launch", study.name, "--ray", "local")
    deadline = time.monotonic() + 120
    while chunk_count(database) == 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, marked.there()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def run_here(folder: Path, study: Path) -> None:
    """Run and export it in this process, without workers."""
    definition = read_study_file(study)
    url = f"sqlite:///{folder}/local.db"
    with StudyDatabase.open(url) as database:
        run_study(database, database.add_study(definition), LocalExecutor(definition))
    export_schedule(url, definition.name, folder / "local")


def test_a_study_begins_on_workers_and_ends_without(cli: Cli, marked: Marked, tmp_path: Path) -> None:
    study = tmp_path / "small.toml"
    study.write_text(TINY)
    kill_after_a_chunk(marked, tmp_path / "ray.db", study)
    # Some of Ray's processes outlive a killed driver by minutes.
    marked.kill()
    cli("--database", "sqlite:///ray.db", "resume", "small", "--take-over")
    with StudyDatabase.open(f"sqlite:///{tmp_path}/ray.db") as database:
        lines = [line.text for line in database.logs(database.study("small"))]
    assert any(re.match(r"worker-\d joined: cpu", line) for line in lines), lines

    exporting = marked.start("export", "small", "--out", "on-ray", "--ray", "local")
    out, error = exporting.communicate(timeout=300)
    assert (exporting.returncode, error) == (0, ""), out
    # Our part of the output, and nothing of Ray's.
    assert out.splitlines()[0].startswith("validation split, 32 samples")
    assert "(raylet)" not in out
    marked.await_end()

    run_here(tmp_path, study)
    assert trials(tmp_path / "ray.db") == trials(tmp_path / "local.db")
    first, second = (read(tmp_path / out / "tiny-llava" / "small.v1.json") for out in ("on-ray", "local"))
    assert first["digest"] == second["digest"]
    assert _without_times(first) == _without_times(second)


def _without_times(document: dict[str, object]) -> object:
    """What was measured, but for the clock."""
    measured = document["measured"]
    assert isinstance(measured, dict)
    return {key: value for key, value in measured.items() if "milliseconds" not in key and "date" not in key}
