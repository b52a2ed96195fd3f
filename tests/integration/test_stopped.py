"""A coordinator that was stopped (SIGSTOP) and lost its lease writes nothing when it wakes up, and says why it ends."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from scheduler_search.coordinator import owner_text
from scheduler_search.errors import DatabaseError, LeaseHeldError
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.states import Lease
from tests.integration.chaos_driver import NAME, SILENT_SECONDS, coordinate
from tests.integration.processes import errors, executed, start
from tests.integration.records import everything, records
from tests.postgres import PostgresServer

pytestmark = pytest.mark.slow

STOPS = 2
SECONDS = 60


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty database."""
    if request.param == "SQLite":
        yield f"sqlite:///{tmp_path}/study.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


def test_a_stopped_coordinator_that_lost_its_lease_writes_nothing(url: str, tmp_path: Path) -> None:
    """Stopped in the middle of whatever it does, a few times in one study; the study ends as if nothing had been."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"random moments from seed {seed}")
    moments = random.Random(seed)
    for stops in range(1, STOPS + 1):
        stopped = start(url, tmp_path, pause=0.02)
        stop(stopped, tmp_path, url, moments)
        with StudyDatabase.open(url) as database:
            taker = take_over(database)
            before = everything(url)
            os.kill(stopped.pid or 0, signal.SIGCONT)
            stopped.join(SECONDS)
            assert stopped.exitcode == 2
            assert everything(url) == before
            database.release(taker)
        assert len(errors(tmp_path)) == stops
        kind, process, *line = errors(tmp_path)[-1].split()
        assert (kind, process) == ("lost", str(stopped.pid))
        assert "taken over" in " ".join(line)
    coordinate(url, tmp_path, 0.0)
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    coordinate(f"sqlite:///{undisturbed}/study.db", undisturbed, 0.0)
    assert records(url) == records(f"sqlite:///{undisturbed}/study.db")


def stop(process: ForkServerProcess, folder: Path, url: str, moments: random.Random) -> None:
    """Stop a coordinator at a random moment after it began its first chunk."""
    before, deadline = len(executed(folder)), time.monotonic() + SECONDS
    while len(executed(folder)) == before:
        assert process.is_alive()
        assert time.monotonic() < deadline, "no chunk is begun"
        time.sleep(0.005)
    time.sleep(moments.uniform(0.0, 0.4))
    os.kill(process.pid or 0, signal.SIGSTOP)
    # Who is stopped within a transaction keeps an SQLite file locked until it wakes up: that lease cannot be taken.
    while url.startswith("sqlite") and locked(url):
        os.kill(process.pid or 0, signal.SIGCONT)
        time.sleep(moments.uniform(0.0, 0.02))
        os.kill(process.pid or 0, signal.SIGSTOP)


def locked(url: str) -> bool:
    """Whether a transaction that writes has the file."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0.2, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False


def take_over(database: StudyDatabase) -> Lease:
    """Claim the study as soon as its owner is silent."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return database.claim(database.study(NAME), owner_text(), silent_seconds=SILENT_SECONDS)
        except LeaseHeldError:
            time.sleep(0.1)
        except DatabaseError:
            # PostgreSQL ends a transaction that is idle for ten seconds, and with it what it has locked.
            pass
        assert time.monotonic() < deadline, "the lease does not fall silent"
