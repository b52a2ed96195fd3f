"""SIGKILL at random moments of coordinators, of two that compete, and of PostgreSQL: every study ends the same.

``make chaos`` kills 200 times, ``make test`` 20 times. The moments are drawn afresh in every run, any of them must do;
CHAOS_SEED repeats those of a run that failed. Model and data are simulated, so that a study takes three seconds; the
kills on the real model are in ``test_kill``.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.integration import chaos_driver
from tests.integration.processes import errors, executed, start
from tests.integration.records import Rows, records
from tests.postgres import PostgresServer

KILLS = int(os.environ.get("CHAOS_KILLS", "20")) // 2  # on each kind of database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 20 * KILLS)]

PAUSE = 0.02
# Half of the kills come within so many seconds of the one before, in which a process starts, waits for a lease that is
# silent for half a second, and computes some chunks; the others so soon after a chunk was begun.
LONGEST_LIFE = 1.5
LONGEST_AFTER_A_CHUNK = 0.4
STUDY_SECONDS = 120


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[dict[str, Rows], str, int]]:
    """By the seed of the study: what is recorded without any kill, the digest, and how many chunks that took."""
    known: dict[int, tuple[dict[str, Rows], str, int]] = {}

    def of(seed: int) -> tuple[dict[str, Rows], str, int]:
        if seed not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            url = f"sqlite:///{folder}/study.db"
            chaos_driver.coordinate(url, folder, 0.0, seed)
            known[seed] = records(url), digest(folder), searched(folder)
        return known[seed]

    return of


def digest(folder: Path) -> str:
    """Of the exported document."""
    document = json.loads((folder / "simulated" / "chaos.v1.json").read_text())
    assert isinstance(document["digest"], str)
    return document["digest"]


def searched(folder: Path) -> int:
    """How many chunks were begun by who owned the study; an export has no owner, and two at a time measure twice."""
    return sum(line.startswith("search ") for line in executed(folder))


class Chaos:
    """Runs one study after the other on fresh databases, killing all the while."""

    def __init__(self, moments: random.Random, server: PostgresServer | None) -> None:
        self._moments = moments
        self._server = server
        self._kinds: list[str] = []
        self.kills: Counter[str] = Counter()
        self.repeated = 0
        self.studies = 0

    def study(self, url: str, folder: Path, kills: int) -> None:
        """Run one study to its end, with at most so many kills; fewer where it ends before."""
        running = [self._start(url, folder)]
        deadline = time.monotonic() + STUDY_SECONDS + kills * 10
        while running:
            assert time.monotonic() < deadline, f"the study does not end: {self.kills}"
            if kills == 0:
                running[0].join(deadline - time.monotonic())
            elif self._kill(url, folder, running):
                kills -= 1
            done = [process for process in running if process.exitcode is not None]
            running = [process for process in running if process.exitcode is None]
            if not running and not any(process.exitcode == 0 for process in done):
                running = [self._start(url, folder)]
        self.studies += 1

    def _start(self, url: str, folder: Path) -> ForkServerProcess:
        return start(url, folder, pause=PAUSE, seed=self.studies % 3)

    def _kill(self, url: str, folder: Path, running: list[ForkServerProcess]) -> bool:
        """Kill something at a random moment; False where everything had ended by then."""
        kind = self._next_kind()
        if kind == "both of two" and len(running) == 1:
            running.append(self._start(url, folder))
        longest = LONGEST_LIFE
        if self._moments.random() < 0.5:
            self._await_chunk(folder, running)
            longest = LONGEST_AFTER_A_CHUNK
        moments = sorted(self._moments.uniform(0.0, longest) for _ in running)
        began = time.monotonic()
        for moment, process in zip(moments, list(running), strict=True):
            process.join(max(0.0, began + moment - time.monotonic()))
            if process.exitcode is not None:
                return False
            if kind == "PostgreSQL":
                self._kill_server()
                break
            process.kill()
            process.join()
        self.kills[kind] += 1
        return True

    def _next_kind(self) -> str:
        """All kinds equally often, in a random order."""
        if not self._kinds:
            self._kinds = ["coordinator", "both of two", *(["PostgreSQL"] if self._server else [])]
            self._moments.shuffle(self._kinds)
        return self._kinds.pop()

    @staticmethod
    def _await_chunk(folder: Path, running: list[ForkServerProcess]) -> None:
        before, deadline = len(executed(folder)), time.monotonic() + STUDY_SECONDS
        while len(executed(folder)) == before and any(process.is_alive() for process in running):
            assert time.monotonic() < deadline, "no chunk is begun"
            time.sleep(0.005)

    def _kill_server(self) -> None:
        assert self._server is not None
        self._server.kill9()
        time.sleep(self._moments.uniform(0.0, 1.0))
        self._server.start()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer | None]:
    """A PostgreSQL server that keeps what it committed when it is killed; none for SQLite."""
    if request.param == "SQLite":
        yield None
        return
    with PostgresServer(durable=True) as started:
        yield started


@pytest.mark.parametrize("server", ["SQLite", "PostgreSQL"], indirect=True)
def test_kills_change_nothing(
    tmp_path: Path,
    undisturbed: Callable[[int], tuple[dict[str, Rows], str, int]],
    server: PostgresServer | None,
) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(2**32)))
    print(f"random moments from seed {seed}")
    chaos = Chaos(random.Random(seed), server)
    while chaos.kills.total() < KILLS:
        study = chaos.studies
        folder = tmp_path / str(study)
        folder.mkdir()
        url = f"sqlite:///{folder}/study.db" if server is None else server.url(server.create_database())
        before = chaos.kills.total()
        chaos.study(url, folder, KILLS - before)
        expected, expected_digest, chunks = undisturbed(study % 3)
        found = records(url)
        for what, rows in expected.items():
            assert found[what] == rows, f"{what} of study {study} differ"
        assert digest(folder) == expected_digest
        # A kill, or a lease that was lost under load, costs the chunk in flight, and never a recorded one.
        repeated = searched(folder) - chunks
        assert repeated <= 2 * (chaos.kills.total() - before) + lost_leases(folder)
        chaos.repeated += repeated
    counts = ", ".join(f"{kind} {count}" for kind, count in sorted(chaos.kills.items()))
    kind = "SQLite" if server is None else "PostgreSQL"
    print(f"{kind}: {chaos.kills.total()} kills ({counts}), {chaos.studies} studies, {chaos.repeated} chunks repeated")


def lost_leases(folder: Path) -> int:
    """How often a process found that another one had taken its study."""
    return sum(line.startswith("lost") for line in errors(folder))
