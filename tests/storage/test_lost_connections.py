"""A database server that goes away and comes back loses nothing; one that stays away is one clear error."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator

import optuna
import pytest

from scheduler_search.errors import DatabaseError
from scheduler_search.storage import ConnectionLostError, StudyDatabase, optuna_errors, optuna_storage
from scheduler_search.storage.retries import retry
from tests.conformance.store import REDUCTION
from tests.conformance.whole import expected_chunk
from tests.postgres import PostgresServer

# Not one transaction each: they open, close, or wrap what others do.
NOT_RETRIED = {"alone", "close", "close_later", "guard", "holding", "open", "retrying"}


def test_every_method_is_retried() -> None:
    methods = {name for name, _ in inspect.getmembers(StudyDatabase, callable) if not name.startswith("_")}
    retried = {name for name in methods if hasattr(getattr(StudyDatabase, name), "__wrapped__")}
    assert methods - retried - NOT_RETRIED == set()


class Clock:
    """Time that passes only in pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def failing(times: int) -> Callable[[], str]:
    faults = iter([ConnectionLostError("the study database must be reachable", actual="a fault")] * times)

    def operation() -> str:
        for fault in faults:
            raise fault
        return "done"

    return operation


def test_pauses_grow_until_the_server_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert retry(failing(9), 60) == "done"
    assert clock.pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_a_server_that_stays_away_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with pytest.raises(DatabaseError, match=r"must be reachable again within 60 s, but got a fault") as caught:
        retry(failing(1000), 60)
    # Or whoever called would begin to wait anew.
    assert not isinstance(caught.value, ConnectionLostError)
    assert 57 < clock.now <= 60


def test_other_errors_are_not_retried() -> None:
    calls = []

    def refuse() -> None:
        calls.append(1)
        raise DatabaseError("no")

    with pytest.raises(DatabaseError, match="no"):
        retry(refuse, 60)
    assert len(calls) == 1


@pytest.fixture(scope="module")
def mortal() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def server(mortal: PostgresServer) -> PostgresServer:
    """A server that runs, and that no other module notices being killed."""
    if not mortal.processes():
        mortal.start()
    return mortal


def kill_and_start(server: PostgresServer, times: int, seconds: float) -> threading.Thread:
    def kill() -> None:
        for _ in range(times):
            time.sleep(seconds)
            server.kill9()
            time.sleep(seconds)
            server.start()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_killed_server_loses_no_chunk_and_counts_none_twice(server: PostgresServer) -> None:
    with StudyDatabase.open(server.url(server.create_database())) as database:
        evaluation = database.evaluation("sha256:key", "search", "sha256:data", REDUCTION, 10_000)
        killer = kill_and_start(server, times=4, seconds=0.3)
        chunks = 0
        while killer.is_alive() or chunks % 100:
            database.add_chunk(evaluation, chunks, expected_chunk(chunks))
            chunks += 1
        killer.join()
        assert chunks > 100
        assert database.chunk_scores(evaluation) == {chunk: expected_chunk(chunk) for chunk in range(chunks)}


@pytest.mark.slow
def test_optunas_storage_comes_back_too(server: PostgresServer) -> None:
    with StudyDatabase.open(server.url(server.create_database())) as database:
        storage = optuna_storage(database)
        study = optuna.create_study(storage=storage, study_name="first/01-layer 3")
        server.kill9()
        with pytest.raises(ConnectionLostError, match="must be reachable"), optuna_errors(database):
            study.ask()
        server.start()

        def ask() -> int:
            with optuna_errors(database):
                return study.ask().number

        assert database.retrying(ask) == 0


@pytest.mark.slow
@pytest.mark.parametrize("away", ["stop", "kill9"])
def test_a_stopped_server_is_waited_for_and_then_one_error(server: PostgresServer, away: str) -> None:
    url = server.url(server.create_database())
    with StudyDatabase.open(url, reconnect_seconds=0.5) as database:
        getattr(server, away)()
        began = time.monotonic()
        with pytest.raises(DatabaseError, match=r"must be reachable again within 0.5 s, but got") as caught:
            database.studies()
        assert 0.2 < time.monotonic() - began < 5
        assert "\n" not in str(caught.value)
        with pytest.raises(DatabaseError, match="must be reachable, but got"):
            StudyDatabase.open(url)
        server.start()
        assert database.studies() == []


@pytest.mark.slow
def test_a_transaction_that_falls_asleep_gives_up_its_lock(server: PostgresServer) -> None:
    url = server.url(server.create_database())
    with StudyDatabase.open(url) as database, StudyDatabase.open(url) as other:

        def sleep() -> None:
            with database._write() as session:
                session.connection().exec_driver_sql("SET idle_in_transaction_session_timeout = '200ms'")
                other.evaluation("sha256:key", "search", "sha256:data", REDUCTION, 4)
                session.connection().exec_driver_sql("SELECT 1")

        with pytest.raises(ConnectionLostError):
            sleep()
        assert database.overview().rows["evaluations"] == 1
