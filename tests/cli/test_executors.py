"""Who runs the chunks, without a cluster: what decides it, and what a user is told where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scheduler_search import cluster
from scheduler_search.cli import main
from scheduler_search.cli.executors import Executors, address_of
from scheduler_search.cluster import health
from scheduler_search.errors import ClusterError
from scheduler_search.evaluation import LocalExecutor
from scheduler_search.study import StudyDefinition
from scheduler_search.study.sections import WorkersSection
from tests.cli.test_bad_input import STUDY, one_line, study_file, written
from tests.coordinator.test_run import definition

Run = Callable[..., tuple[int, str]]

AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
ON_RAY = STUDY + '[workers]\nexecutor = "ray"\n'


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*AUTHENTICATION, "RAY_ADDRESS", "SCHEDULER_SEARCH_RAY", "SCHEDULER_SEARCH_DATABASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty folder; returns exit code and what it printed to stderr."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["scheduler-search", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return invoke


def on_ray(**keys: Any) -> StudyDefinition:
    workers = WorkersSection(executor="ray", **keys)
    return definition().model_copy(update={"workers": workers})


class Clusters:
    """Stands in for the package that talks to Ray: which connections are open, and who was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.answer = True
        self.connected = 0
        monkeypatch.setattr(cluster, "connect", self.connect)
        monkeypatch.setattr(cluster, "RayExecutor", self.make)
        monkeypatch.setattr(health, "answers", lambda: self.answer)

    @contextmanager
    def connect(self, address: str) -> Iterator[None]:
        self.open.append(address)
        self.connected += 1
        yield
        self.open.remove(address)

    def make(self, _definition: StudyDefinition, **keys: Any) -> object:
        self.made.append(keys)
        return object()


def test_a_study_names_no_cluster_unless_it_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address_of(definition()) is None
    assert address_of(on_ray()) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert address_of(on_ray()) == "head:6379"
    # Somebody's Ray is no reason to use it.
    assert address_of(definition()) is None


def test_the_option_decides_and_else_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = Clusters(monkeypatch)
    with Executors("head:1") as executors:
        executors.make(definition())
        executors.make(on_ray())
    with Executors() as executors:
        executors.make(on_ray())
        assert isinstance(executors.make(definition()), LocalExecutor)
    # As an empty variable gives it.
    with Executors("") as executors:
        assert isinstance(executors.make(definition()), LocalExecutor)
    assert [made["address"] for made in clusters.made] == ["head:1", "head:1", "auto"]


def test_a_connection_is_kept_until_it_is_doubted_or_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = Clusters(monkeypatch)
    with Executors("head:1") as executors:
        executors.connect()
        executors.make(definition())
        executors.make(definition())
        assert clusters.connected == 1
        executors.doubt()
        executors.connect()
        assert clusters.connected == 2
        clusters.answer = False
        executors.connect()
        assert clusters.connected == 3
        assert clusters.open == ["head:1"]
    assert clusters.open == []
    with Executors() as executors:
        executors.connect()
        assert clusters.open == []


def test_an_installation_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in [name for name in sys.modules if name.split(".")[:2] == ["scheduler_search", "cluster"]]:
        monkeypatch.delitem(sys.modules, name)
    import scheduler_search

    monkeypatch.delattr(scheduler_search, "cluster")
    with pytest.raises(ClusterError, match=r"install it with: pip install .*cluster"):
        Executors("local").make(definition())


def test_no_token(run: Run, tmp_path: Path) -> None:
    study_file(tmp_path, STUDY)
    done = run("launch", "bad.toml", "--ray", "127.0.0.1:1")
    one_line(*done, "token", "RAY_AUTH_MODE=token", "Ray at 127.0.0.1:1", "--ray local")
    assert written(tmp_path) == {"bad.toml"}


def test_not_an_address(run: Run, tmp_path: Path) -> None:
    study_file(tmp_path, STUDY)
    one_line(*run("launch", "bad.toml", "--ray", "ray://head"), "host:port", "'ray://head'", "--ray")


def test_a_study_file_that_asks_for_a_cluster_where_none_is(run: Run, tmp_path: Path) -> None:
    study_file(tmp_path, ON_RAY)
    one_line(*run("launch", "bad.toml"), "Ray at auto", "--ray local")
    assert written(tmp_path) == {"bad.toml"}


@pytest.mark.slow
def test_a_queue_whose_cluster_is_missing(run: Run, tmp_path: Path) -> None:
    study_file(tmp_path, STUDY)
    assert run("submit", "bad.toml")[0] == 0
    one_line(*run("coordinate", "--once", "--ray", "127.0.0.1:1"), "token")
    study_file(tmp_path, ON_RAY.replace('"bad"', '"on-ray"'), "ray.toml")
    assert run("submit", "ray.toml", "--priority", "1")[0] == 0
    one_line(*run("coordinate", "--once"), "Ray at auto", "--ray local")
