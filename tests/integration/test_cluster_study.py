"""Whole studies of the testbed model on a real cluster decide what they decide in one process, bit for bit.

A race that is over may have more chunks recorded than in one process: a worker had them queued. Nothing reads those.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scheduler_search.cluster import RayExecutor, WorkerEvent, WorkerJoined, WorkerLost, connect
from scheduler_search.coordinator import run_study
from scheduler_search.coordinator.events import Event, TrialFinished
from scheduler_search.evaluation.local import LocalExecutor
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import StudyDefinition, read_study_file
from scheduler_search.study.values import Executor
from tests.cluster.nodes import Nodes, nodes
from tests.integration.commands import Command, environment
from tests.integration.conftest import SMALL, Cli
from tests.integration.records import Rows, records

pytestmark = pytest.mark.slow

IN_THE_TOWER = """
name = "small"
seed = 3
[model]
id = "testbed:tiny-llava"
device = "cpu"
[data]
source = "testbed"
chunk = 8
search = { samples = 32 }
[rule]
name = "mustdrop"
[search]
first_layer = 6
stride = 6
penalty = 0.2
initial = 2
iterations = 1
"""
STUDY = (
    SMALL.replace("initial = 3", "initial = 2")
    .replace("iterations = 4", "iterations = 2")
    .replace('source = "testbed"', 'source = "testbed"\nchunk = 8')
    .replace("validation = { samples = 64 }\n", "")
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Two nodes with room for one worker each, or for two small ones."""
    with nodes(cpus=1) as found:
        found.add()
        yield found


@pytest.fixture(scope="module")
def definition(tmp_path_factory: pytest.TempPathFactory) -> StudyDefinition:
    path = tmp_path_factory.mktemp("study") / "small.toml"
    path.write_text(STUDY)
    return read_study_file(path)


@pytest.fixture(scope="module")
def local(definition: StudyDefinition, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """What the study decides in one process."""
    return run(definition, LocalExecutor(definition), tmp_path_factory.mktemp("local"))


def run(
    definition: StudyDefinition, executor: Executor, folder: Path, listen: Callable[[Event], None] = lambda _: None
) -> dict[str, Rows]:
    url = f"sqlite:///{folder}/study.db"
    try:
        with StudyDatabase.open(url) as database:
            run_study(database, database.add_study(definition), executor, listen)
    finally:
        executor.close()
    return records(url)


def check(found: dict[str, Rows], expected: dict[str, Rows]) -> None:
    found, expected = dict(found), dict(expected)
    assert set(found.pop("scores")) >= set(expected.pop("scores"))
    assert found == expected


def test_four_workers_decide_the_same(
    cluster: Nodes, definition: StudyDefinition, local: dict[str, Rows], tmp_path: Path
) -> None:
    """Scores, trials, decisions, and with them every digest. The other tests have two workers, and one."""
    events: list[WorkerEvent] = []
    workers = definition.workers.model_copy(update={"count": 4, "cpus": 0.5})
    asked = definition.model_copy(update={"workers": workers})
    assert asked.digest == definition.digest
    with connect(cluster.address):
        executor = RayExecutor(asked, report=events.append)
        executor.model()
        while sum(isinstance(event, WorkerJoined) for event in events) < 4:
            executor.step(1.0)
        check(run(asked, executor, tmp_path), local)


def test_a_study_in_tower_entry_and_decoder(cluster: Nodes, tmp_path: Path) -> None:
    """On two workers that can store next to nothing; here, everything is stored."""
    path = tmp_path / "small.toml"
    path.write_text(IN_THE_TOWER)
    definition = read_study_file(path)
    folders = [tmp_path / name for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
    local = run(definition, LocalExecutor(definition), folders[0])
    asked = definition.model_copy(
        update={"workers": definition.workers.model_copy(update={"count": 2, "prefix_memory": "100KiB"})}
    )
    assert asked.digest == definition.digest
    check(run(asked, RayExecutor(asked, address=cluster.address), folders[1]), local)
    assert any(name == "tower-02" for _, name, *_ in local["decisions"])


def test_a_worker_killed_half_way_changes_nothing(
    cluster: Nodes, definition: StudyDefinition, local: dict[str, Rows], tmp_path: Path
) -> None:
    events: list[WorkerEvent] = []
    executor = RayExecutor(definition, address=cluster.address, report=events.append)
    killed: list[int] = []

    def kill(event: Event) -> None:
        if isinstance(event, TrialFinished) and event.number == 2 and not killed:
            member = next(iter(executor._workers()._members.values()))
            assert member.where is not None
            killed.append(member.where.process)
            os.kill(member.where.process, signal.SIGKILL)

    check(run(definition, executor, tmp_path, kill), local)
    assert killed
    assert any(isinstance(event, WorkerLost) for event in events)


def test_a_killed_driver_is_resumed_on_another_cluster(
    cluster: Nodes, local: dict[str, Rows], tmp_path: Path, cli: Cli
) -> None:
    """The command line with one worker on the cluster of two nodes, then with one on a private cluster."""
    (tmp_path / "small.toml").write_text(f"{STUDY}[workers]\ncount = 1\n")
    database = tmp_path / "study.db"
    database_option = ["--database", "sqlite:///study.db"]
    command = [*database_option, "launch", "small.toml", "--ray", cluster.address]
    token = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH_")}
    with Path(os.devnull).open("wb") as nothing:
        driver = Command(*command, folder=tmp_path, variables=environment() | token, output=nothing)
    try:
        wait_for_chunks(driver, database, 12)
    finally:
        driver.kill()
        driver.wait()
    cli(*database_option, "resume", "small", "--ray", "local", "--take-over")
    check(records("sqlite:///" + str(database)), local)


def wait_for_chunks(driver: Command, database: Path, wanted: int) -> None:
    end = time.monotonic() + 120
    while True:
        assert driver.poll() is None, "it ended by itself"
        assert time.monotonic() < end
        time.sleep(0.2)
        if not database.exists():
            continue
        connection = sqlite3.connect(database, timeout=30)
        try:
            (found,) = connection.execute("SELECT count(DISTINCT evaluation_id || '/' || chunk) FROM chunk_scores")
        except sqlite3.OperationalError:  # the tables are not made yet
            continue
        finally:
            connection.close()
        if found[0] >= wanted:
            return
