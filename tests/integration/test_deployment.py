"""The commands of docker-compose.yml as processes of this machine: the flow that its services are put together for.

Knows: which names of containers, ports and folders stand for what here. Does not know: the commands themselves, which
are read from the file. No Docker engine is needed, and so none is tested.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scheduler_search.storage import StudyDatabase
from scheduler_search.study.states import StudyState
from tests.integration import commands
from tests.integration.commands import environment
from tests.integration.conftest import read
from tests.integration.test_dashboard import free_port, get
from tests.postgres import PostgresServer, find_programs
from tests.workers.deployment import WORKERS, command_of, compose

pytestmark = pytest.mark.slow

STUDY = """
name = "deployed"
[model]
id = "testbed:tiny-llava"
device = "cpu"
[data]
source = "testbed"
search = { samples = 32 }
validation = { samples = 32 }
[search]
first_layer = 5
stride = 8
refine = false
initial = 1
iterations = 1
[workers]
count = 1
"""
SECONDS = 240
RESTARTS = 3


class Deployment:
    """The services of the compose file as processes, each with what its container would have in the environment."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        # The path of a Unix socket may have 107 characters, and Ray's are long.
        self.temporary = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        self.head = f"127.0.0.1:{free_port()}"
        self.dashboard_port = free_port()
        self.database = url
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self._restarts = 0
        token = folder / "token"
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        self._here = {
            "ray-head:6379": self.head,
            "127.0.0.1:6379": self.head,
            "--port=6379": f"--port={self.head.rpartition(':')[2]}",
            "postgresql://scheduler_search:database-password@database/scheduler_search": url,
            "postgresql+psycopg://dashboard@database/scheduler_search": url.replace("//postgres@", "//dashboard@"),
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=8080": f"--port={self.dashboard_port}",
            "/run/secrets/ray_token": str(token),
        }
        variables = {"POSTGRES_PASSWORD": "database-password", "DASHBOARD_PASSWORD": "dashboard-password"}
        variables |= {"RAY_AUTH_TOKEN": "in the file", "RAY_OBJECT_STORE_BYTES": "80000000"}
        self.services: dict[str, Any] = compose(variables)["services"]

    def here(self, text: str) -> str:
        for there, here in self._here.items():
            text = text.replace(there, here)
        return text

    def environment(self, service: str) -> dict[str, str]:
        given = {name: self.here(value) for name, value in self.services[service].get("environment", {}).items()}
        return environment() | {"RAY_TMPDIR": str(self.temporary)} | given

    def start(self, service: str) -> subprocess.Popen[bytes]:
        """Start a service; what it prints goes to the end of a file of its name."""
        command = [self.here(word) for word in command_of(self.services[service])]
        with self.log(service).open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment(service),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started[service] = process
        return process

    def run(self, service: str, *command: str, **other: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a service, as ``docker compose exec`` does; ``other`` changes its environment."""
        words = [self.here(word) for word in command]
        variables = self.environment(service) | other
        if words[0] == commands.PROGRAM:
            return commands.run(*words[1:], folder=self.folder, variables=variables, timeout=SECONDS)
        return subprocess.run(
            words,
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not happened():
            self._restart_the_failed()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def _restart_the_failed(self) -> None:
        """As Docker does. On a busy machine a node of Ray gives up after thirty seconds."""
        for service, process in list(self.started.items()):
            if process.poll() is not None:
                assert self.services[service]["restart"] == "unless-stopped", self.logs()
                self._restarts += 1
                assert self._restarts <= RESTARTS, self.logs()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                self.start(service)

    def is_healthy(self, service: str) -> bool:
        test = self.services[service]["healthcheck"]["test"]
        return self.run(service, *test[1:]).returncode == 0

    def log(self, service: str) -> Path:
        return self.folder / f"{service}.txt"

    def logs(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("*.txt")))

    def stop(self) -> None:
        """Ask every service to stop; then what is left of its container goes, as with Docker."""
        for process in reversed(self.started.values()):
            process.terminate()
        for process in self.started.values():
            process.wait(SECONDS)
        for number in self.processes():
            os.kill(number, signal.SIGKILL)
        while self.processes():
            time.sleep(0.1)
        shutil.rmtree(self.temporary)

    def processes(self) -> list[int]:
        """Whatever of this deployment runs, by its environment: Ray's processes leave their parents."""
        mark = f"RAY_TMPDIR={self.temporary}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with PostgresServer() as server:
        name = server.create_database()
        make_dashboard_role(server.url(name), name)
        running = Deployment(tmp_path_factory.mktemp("deployment"), server.url(name))
        try:
            yield running
        finally:
            running.stop()


def make_dashboard_role(url: str, name: str) -> None:
    """What PostgreSQL's image does with the script in an empty volume."""
    own = {"POSTGRES_USER": "postgres", "POSTGRES_DB": name, "DASHBOARD_PASSWORD": 'it\'s "quoted"'}
    path = f"{find_programs()}{os.pathsep}{os.environ['PATH']}"
    script = ["sh", str(WORKERS / "database" / "dashboard-role.sh")]
    subprocess.run(script, env={"PATH": path, "PGHOST": url.rpartition("host=")[2], **own}, check=True)


def test_from_an_empty_database_to_an_exported_schedule(deployment: Deployment) -> None:
    assert deployment.start("database-init").wait(SECONDS) == 0, deployment.logs()
    del deployment.started["database-init"]
    deployment.start("ray-head")
    deployment.wait_until(lambda: has_started(deployment, "ray-head"))
    deployment.wait_until(lambda: deployment.is_healthy("ray-head"))
    nobody_without_the_token(deployment)
    # One after the other: two nodes of one machine that start at once are in each other's way.
    for service in ("cpu-worker", "coordinator"):
        deployment.start(service)
        deployment.wait_until(lambda: has_started(deployment, service))  # noqa: B023

    study_file = deployment.folder / "deployed.toml"
    study_file.write_text(STUDY)
    done = deployment.run("coordinator", "scheduler-search", "submit", str(study_file))
    assert done.returncode == 0, done.stderr
    with StudyDatabase.open(deployment.database) as database:
        deployment.wait_until(lambda: database.study("deployed").state is not StudyState.QUEUED)
        deployment.wait_until(lambda: database.study("deployed").state is not StudyState.RUNNING)
        study = database.study("deployed")
        assert study.state is StudyState.FINISHED, (study.traceback, deployment.logs())
        lines = [line.text for line in database.logs(study)]
        assert [line for line in lines if " joined: " in line], lines

    export = ["scheduler-search", "export", "deployed", "--out", "exported", "--ray", "ray-head:6379"]
    done = deployment.run("coordinator", *export)
    assert done.returncode == 0, done.stderr + deployment.logs()
    (schedule,) = (deployment.folder / "exported").rglob("*.json")
    assert read(schedule)["measured"] is not None
    the_dashboard_only_reads(deployment)


def has_started(deployment: Deployment, service: str) -> bool:
    """Whether its Ray has; it is not asked yet whether it is healthy, which takes a process."""
    return "Ray runtime started" in deployment.log(service).read_text()


def test_the_coordinator_stops_when_asked(deployment: Deployment) -> None:
    coordinator = deployment.started["coordinator"]
    coordinator.terminate()
    assert coordinator.wait(SECONDS) == 0, deployment.logs()
    assert deployment.log("coordinator").read_text().splitlines()[-1] == "stopped"


def nobody_without_the_token(deployment: Deployment) -> None:
    """Neither Ray's own client nor ours is served without the token, or with another one."""
    another = secrets.token_hex(32)
    others = ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": another})
    check = ["ray", "health-check", "--address", "ray-head:6379"]
    coordinate = ["scheduler-search", "coordinate", "--once", "--ray", "ray-head:6379"]
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(deployment.run, "ray-head", *check, **other) for other in others]
        refused = [threads.submit(deployment.run, "coordinator", *coordinate, **other) for other in others]
    for done in (one.result() for one in asked):
        assert done.returncode == 1
        assert "InvalidAuthToken" in done.stderr
    for done in (one.result() for one in refused):
        assert done.returncode not in (0, None)
        (line,) = done.stderr.splitlines()
        assert "token" in line
        assert another not in done.stderr


def the_dashboard_only_reads(deployment: Deployment) -> None:
    """It shows the study, and cannot delete it though it asks nobody for a password."""
    deployment.start("optuna-dashboard")
    address, log = f"http://127.0.0.1:{deployment.dashboard_port}", deployment.log("optuna-dashboard")
    shown = get(address, "/api/studies", log)["study_summaries"]
    assert [one["study_name"].partition("/")[0] for one in shown] == ["deployed"] * len(shown) != []
    request = urllib.request.Request(f"{address}/api/studies/{shown[0]['study_id']}", method="DELETE")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=30)
    with refusal.value as answer:
        assert answer.code >= 400
    assert json.dumps(get(address, "/api/studies", log)["study_summaries"]) == json.dumps(shown)
