"""Daemons as processes on the real tiny model: they share the queue, and stop when they are asked to."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scheduler_search.storage import StudyDatabase
from scheduler_search.study import read_study_file
from scheduler_search.study.states import StudyState
from tests.integration.commands import Command
from tests.integration.test_kill import chunk_count

pytestmark = pytest.mark.slow

TINY = """
name = "NAME"
seed = SEED
[model]
id = "testbed:tiny-llava"
device = "cpu"
[data]
source = "testbed"
search = { samples = 16 }
[search]
first_layer = 5
stride = 8
refine = false
initial = 1
iterations = 1
"""
LONG = TINY.replace("16", "128").replace("stride = 8", "stride = 1").replace("iterations = 1", "iterations = 20")
DATABASE = "scheduler-search.db"


def wait_until(happened: Callable[[], bool], process: Command) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(process: Command) -> tuple[int, str]:
    """Ask with SIGTERM; exit code and what it printed."""
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert error == ""
    return process.returncode, out


def write(folder: Path, text: str, name: str, seed: int = 0) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text.replace("NAME", name).replace("SEED", str(seed)))
    return path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[StudyDatabase]:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/{DATABASE}") as opened:
        yield opened


def test_daemons_share_the_queue_and_stop_when_asked(database: StudyDatabase, tmp_path: Path) -> None:
    long = database.submit(read_study_file(write(tmp_path, LONG, "long")), priority=9)
    names = [f"tiny-{index}" for index in range(5)]
    for index, name in enumerate(names):
        database.submit(read_study_file(write(tmp_path, TINY, name, index)))

    daemon = Command("coordinate", folder=tmp_path)
    wait_until(lambda: chunk_count(tmp_path / DATABASE) > 0, daemon)
    code, out = stop(daemon)
    assert code == 0
    assert "study long: stopped, back in the queue" in out
    assert out.splitlines()[-1] == "stopped"
    stopped = database.study("long")
    assert (stopped.state, stopped.attempts, stopped.owner) == (StudyState.QUEUED, 0, None)
    # The chunk in flight was not thrown away half done.
    assert chunk_count(tmp_path / DATABASE) % 16 == 0

    database.cancel(long)
    daemons = [Command("coordinate", "--once", folder=tmp_path) for _ in range(2)]
    finished = []
    for daemon in daemons:
        out, error = daemon.communicate(timeout=300)
        assert (daemon.returncode, error) == (0, "")
        finished.append(re.findall(r"study (\S+): finished", out))
    assert sorted(finished[0] + finished[1]) == names
    assert all(finished)
    for name in names:
        study = database.study(name)
        assert (study.state, study.attempts) == (StudyState.FINISHED, 1)
        assert [line.text for line in database.logs(study)].count("finished") == 1
    assert database.study("long").state is StudyState.CANCELLED


def test_sigterm_leaves_a_launched_study_resumable(database: StudyDatabase, tmp_path: Path) -> None:
    process = Command("launch", write(tmp_path, LONG, "long").name, folder=tmp_path)
    wait_until(lambda: chunk_count(tmp_path / DATABASE) > 0, process)
    code, out = stop(process)
    assert code == 128 + signal.SIGTERM
    assert "scheduler-search resume long" in out
    study = database.study("long")
    assert (study.state, study.owner) == (StudyState.INTERRUPTED, None)
