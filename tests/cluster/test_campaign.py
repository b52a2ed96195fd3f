"""Trials on a real cluster: one that fails or is killed harms no other."""

from __future__ import annotations

import logging
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from scheduler_search.cli.campaign import run_campaign
from scheduler_search.errors import ClusterError, StudyConflictError
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.campaign import read_campaign_file
from scheduler_search.study.states import StudyState
from tests.cluster.campaigns import TINY, outcome, run_alone, write
from tests.cluster.executors import Faulty, plant
from tests.cluster.nodes import nodes
from tests.cluster.processes import logging_restored

pytestmark = pytest.mark.slow

PENALTIES = '[[matrix]]\n"search.penalty" = [0.01, 0.1]\n'
# The second has no model, on any attempt.
ONE_FAILS = '[[matrix]]\n"model.id" = ["testbed:tiny-llava", "./missing"]\n'

TWO_WORKERS = (
    TINY.replace('"tiny"\n', '"tiny"\nworkers = 2\n').replace("[study.data]\n", "[study.data]\nchunk = 8\n")
    + """
[study.workers]
cpus = 0.5
[[matrix]]
"search.algorithm" = ["g-search"]
"search.stride" = 3
"search.refine" = false
"search.penalty" = [0.01]
[[matrix]]
"search.algorithm" = ["p-sigmoid"]
"search.budget" = [0.3]
"""
)


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    """Two nodes with room for a coordinator and two small workers each."""
    from scheduler_search.cluster import campaign, connect

    with nodes(cpus=2) as found, pytest.MonkeyPatch.context() as patch:
        # What is done to a study on the way is done before it is over.
        patch.setattr(campaign, "_LOOK_SECONDS", 0.05)
        found.add(2)
        with connect(found.address):
            yield


@pytest.fixture
def database(tmp_path: Path) -> Iterator[StudyDatabase]:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/not-to-be-told.db") as opened:
        yield opened


def run(
    database: StudyDatabase,
    file: Path,
    look: Callable[[], None],
) -> dict[str, str]:
    from scheduler_search.cluster.campaign import run_trials

    campaign = read_campaign_file(file)
    for definition in campaign.studies:
        database.add_study(definition)
    url = database.url.render_as_string(hide_password=False)
    return run_trials(database, url, campaign.section, campaign.studies, stop=lambda: False, look=look)


def begun(database: StudyDatabase, name: str) -> bool:
    return any(database.trials(stage) for stage in database.stages(database.study(name)))


def told(database: StudyDatabase, name: str) -> list[str]:
    return [line.text for line in database.logs(database.study(name))]


@pytest.mark.usefixtures("_cluster")
def test_a_study_that_fails_ends_no_other(
    database: StudyDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = database.url.render_as_string()
    file = write(tmp_path, TINY.replace('[study.model]\nid = "testbed:tiny-llava"', "[study.model]") + ONE_FAILS)
    file.write_text(file.read_text().replace('name = "tiny"', 'name = "tiny"\nattempts = 2'))
    with pytest.raises(typer.Exit) as ended:
        run_campaign(url, file, "local", resume=False)
    assert ended.value.exit_code == 2
    good, bad = database.study("tiny-tiny-llava"), database.study("tiny-missing")
    assert (good.state, bad.state, bad.owner) == (StudyState.FINISHED, StudyState.FAILED, None)
    assert sum(line.startswith("taken up") for line in told(database, bad.name)) == 2
    out, error = capsys.readouterr()
    assert error == ""
    assert "1 of 2 studies are finished" in out
    assert re.search(r"study tiny-missing is failed: .*missing", out)
    assert "Tune" not in out

    with pytest.raises(StudyConflictError, match="add --resume") as refused:
        run_campaign(url, file, "local", resume=False)
    assert "2 of 2 studies begun, 1 of them finished" in str(refused.value)


@pytest.mark.usefixtures("_cluster")
def test_a_killed_trial_is_tried_again_and_tune_is_told_no_secret(database: StudyDatabase, tmp_path: Path) -> None:
    name, killed, seen = "tiny-penalty-0.01", [], set()

    def look() -> None:
        owner = database.study(name).owner
        for path in Path(tempfile.gettempdir()).glob("campaign-*/**/*"):
            if path.is_file():
                seen.add(path.name)
                assert b"not-to-be-told" not in path.read_bytes(), path
        if not killed and owner and begun(database, name):
            killed.append(owner)
            os.kill(int(owner.split(" pid ")[1].split()[0]), signal.SIGKILL)

    text = TINY.replace("iterations = 2", "iterations = 4") + PENALTIES
    assert run(database, write(tmp_path, text), look) == {}
    assert "tuner.pkl" in seen
    assert {study.state for study in database.studies()} == {StudyState.FINISHED}
    owners = [line for line in told(database, name) if line.startswith("taken up")]
    assert len(owners) == 2
    assert owners[0] == f"taken up by {killed[0]}"
    # At once, since the dead trial was one of the same run.
    assert owners[0].rsplit(", ", 1)[1] == owners[1].rsplit(", ", 1)[1]


@pytest.mark.usefixtures("_cluster")
def test_studies_with_workers_of_their_own_decide_what_they_decide_alone(
    database: StudyDatabase, tmp_path: Path
) -> None:
    """Two studies at once, with two workers each, one of which is killed."""
    file = write(tmp_path, TWO_WORKERS)
    campaign = read_campaign_file(file)
    killed: list[int] = []

    def look() -> None:
        found = [one for one in workers() if any(begun(database, study.name) for study in campaign.studies)]
        if found and not killed:
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)

    assert run(database, file, look) == {}
    assert killed
    assert {one.name: outcome(database, one) for one in database.studies()} == run_alone(tmp_path, campaign)
    lines = [told(database, study.name) for study in campaign.studies]
    assert all(any(line.startswith("worker-") and " joined: " in line for line in one) for one in lines)
    assert any(" was lost: " in line for one in lines for line in one)


def workers() -> list[int]:
    """The processes of all workers that are alive."""
    from ray._private.state import actors

    return [one["Pid"] for one in actors().values() if (one["ActorClassName"], one["State"]) == ("Worker", "ALIVE")]


@pytest.mark.usefixtures("_cluster")
def test_a_study_that_fits_nowhere_is_refused(tmp_path: Path) -> None:
    from scheduler_search.cluster.campaign import check_resources

    studies = read_campaign_file(write(tmp_path, TINY + "[study.workers]\ncpus = 4096\n" + PENALTIES)).studies
    with pytest.raises(ClusterError, match=r"4096 CPU asked for, and \d+ there"):
        check_resources(studies, f"sqlite:///{tmp_path}/study.db")


def test_what_a_trial_warns_of_is_in_the_log_of_its_study(
    database: StudyDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with an executor in its own process; it lives in this one here."""
    from scheduler_search.cluster.trial import StudyTrial

    study = database.add_study(read_campaign_file(write(tmp_path, TINY + PENALTIES)).studies[0])
    executor = Faulty(tmp_path)(study.definition, 1)
    monkeypatch.setattr(StudyTrial, "_executor", lambda *_: executor)
    plant(tmp_path, "warn-1")
    trial = StudyTrial.__new__(StudyTrial)
    with logging_restored():
        trial.setup({"study": study.name}, url=database.url.render_as_string(), run="this")
        logging.getLogger("somebody").warning("this is nobody's")
        assert trial.step() == {"done": True}
    assert database.study(study.name).state is StudyState.FINISHED
    (line,) = [line for line in database.logs(study) if line.level != "info"]
    assert line.level == "warning"
    assert "chunk 1 is odd" in line.text


def test_a_study_with_workers_reserves_them_beside_its_coordinator(tmp_path: Path) -> None:
    from scheduler_search.cluster.campaign import bundles_of

    text = TINY + "[study.workers]\nthreads = 2\n" + PENALTIES
    alone = read_campaign_file(write(tmp_path, text)).studies[0]
    assert bundles_of(alone, 0.0) == [{"CPU": 2.0}]
    assert bundles_of(alone, 4.0, "node:here") == [{"CPU": 2.0, "node:here": 0.001}]
    text = text.replace('"tiny"\n', '"tiny"\nworkers = 2\n').replace('device = "cpu"', 'device = "auto"')
    shared = read_campaign_file(write(tmp_path, text.replace("threads = 2", "gpus = 0.5"))).studies[0]
    assert bundles_of(shared, 0.0, "node:here") == [
        {"CPU": 1.0, "node:here": 0.001},
        {"CPU": 1.0, "GPU": 0.5},
        {"CPU": 1.0, "GPU": 0.5},
    ]
    whole = read_campaign_file(write(tmp_path, text)).studies[0]
    assert bundles_of(whole, 4.0)[1] == {"CPU": 2.0, "GPU": 1.0}
    assert bundles_of(whole, 0.0)[1] == {"CPU": 2.0}
