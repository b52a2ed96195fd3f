"""optuna-dashboard, as its users start it, on the database of a study."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler_search.coordinator import run_study
from scheduler_search.storage import StudyDatabase
from tests.coordinator.simulated import SimulatedExecutor
from tests.coordinator.test_run import definition
from tests.integration.commands import environment

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a running dashboard, and its log."""
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as database:
        study = database.add_study(definition(name="my-study", stride=5, initial=1, iterations=2))
        run_study(database, study, SimulatedExecutor())
    port, log = free_port(), tmp_path / "dashboard.log"
    command = ["optuna-dashboard", f"sqlite:///{tmp_path}/study.db", "--host", "127.0.0.1", "--port", str(port)]
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=environment(), stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield f"http://127.0.0.1:{port}", log
        finally:
            process.terminate()


def get(address: str, path: str, log: Path) -> Any:
    """The answer to a request, as soon as the server is there."""
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(address + path, timeout=30) as answer:
                return json.loads(answer.read())
        except (urllib.error.URLError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError) or time.monotonic() > deadline:
                raise AssertionError(f"{error}: {log.read_text()}") from error
            time.sleep(0.1)


def test_it_shows_each_stage_as_a_study_with_a_readable_name(dashboard: tuple[str, Path], tmp_path: Path) -> None:
    address, log = dashboard
    shown = get(address, "/api/studies", log)["study_summaries"]
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as database:
        stages = database.stages(database.study("my-study"))
        trials = len(database.trials(stages[0]))
    names = [f"my-study/{stage.index + 1:02d}-{stage.name}" for stage in stages]
    assert names[0].startswith("my-study/01-layer-")
    assert sorted(one["study_name"] for one in shown) == names
    first = next(one for one in shown if one["study_name"] == names[0])
    assert first["directions"] == ["maximize"]
    detail = get(address, f"/api/studies/{first['study_id']}", log)
    assert len(detail["trials"]) == trials
    assert detail["trials"][0]["state"] == "Complete"
    assert {attribute["key"] for attribute in detail["trials"][0]["user_attrs"]} >= {"keep_rate", "score"}
