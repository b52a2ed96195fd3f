"""A campaign whose driver is killed half way and resumed: every study is the one that it would have been alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scheduler_search.storage import StudyDatabase
from scheduler_search.study.campaign import read_campaign_file
from scheduler_search.study.states import StudyState
from tests.cluster.campaigns import TWELVE, outcome, run_alone, write
from tests.integration.commands import Command, environment

pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """For temporary files of Ray; whatever still runs there at the end is killed."""
    path = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))
    yield path
    for process in processes(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(path, ignore_errors=True)


def processes(folder: Path) -> list[int]:
    """Of Ray sessions that lie in the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def start(folder: Path, *arguments: str) -> Command:
    command = ("--database", "sqlite:///campaign.db", "campaign", "run", "campaign.toml", *arguments)
    return Command(*command, folder=folder, variables=environment() | {"TMPDIR": str(folder)}, session=True)


def wait_until(happened: Callable[[], bool], process: Command) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def states(folder: Path) -> list[StudyState]:
    if not (folder / "campaign.db").exists():
        return []
    with StudyDatabase.open(f"sqlite:///{folder}/campaign.db") as database:
        return [study.state for study in database.studies()]


def test_a_campaign_killed_half_way_and_resumed(folder: Path) -> None:
    campaign = read_campaign_file(write(folder, TWELVE))
    assert len(campaign.studies) == 12
    killed = start(folder, "--ray", "local")
    wait_until(lambda: states(folder).count(StudyState.FINISHED) >= 5, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    with StudyDatabase.open(f"sqlite:///{folder}/campaign.db") as database:
        assert len(database.studies()) == 12
        done = {one.name: one.changed for one in database.studies() if one.state is StudyState.FINISHED}
        assert 5 <= len(done) < 12

    resumed = start(folder, "--ray", "local", "--resume")
    out, error = resumed.communicate(timeout=500)
    assert (resumed.returncode, error) == (0, ""), out
    assert "12 of 12 studies are finished" in out
    alone = run_alone(folder, campaign)
    with StudyDatabase.open(f"sqlite:///{folder}/campaign.db") as database:
        assert {one.name: outcome(database, one) for one in database.studies()} == alone
        # What was finished was not run again.
        assert {name: database.study(name).changed for name in done} == done
        assert {one.owner for one in database.studies()} == {None}

    again = start(folder, "--ray", "local")
    out, error = again.communicate(timeout=60)
    assert (again.returncode, error) == (0, "")
    assert "12 of 12 studies are finished" in out


def test_sigterm_stops_the_studies_and_the_cluster(folder: Path) -> None:
    text = TWELVE.replace("samples = 32", "samples = 256").replace("iterations = 2", "iterations = 30")
    write(folder, text.replace('"tiny"\n', '"tiny"\nmax_concurrent = 1\n'))
    process = start(folder, "--ray", "local")
    wait_until(lambda: StudyState.RUNNING in states(folder), process)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (128 + signal.SIGTERM, "")
    assert "campaign run campaign.toml --resume" in out
    assert set(states(folder)) <= {StudyState.QUEUED, StudyState.INTERRUPTED, StudyState.FINISHED}
    assert StudyState.INTERRUPTED in states(folder)
    with StudyDatabase.open(f"sqlite:///{folder}/campaign.db") as database:
        for study in database.studies():
            assert study.owner is None
            if study.state is StudyState.INTERRUPTED:
                assert database.logs(study)[-1].text == "stopped with its campaign"
    deadline = time.monotonic() + 60
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes(folder) == []
