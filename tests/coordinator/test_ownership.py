"""Who owns a study, how its runs end, and what is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from scheduler_search.coordinator import Stopped, owned, owner_text, run_study
from scheduler_search.errors import DatabaseError, DataError, LeaseHeldError, LeaseLostError, StudyConflictError
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.states import StudyRecord, StudyState
from scheduler_search.study.values import ChunkResult, ChunkTask
from tests.coordinator.simulated import SimulatedExecutor
from tests.coordinator.test_run import Killed, definition, snapshot

pytestmark = pytest.mark.slow


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def database(url: str) -> Iterator[StudyDatabase]:
    with StudyDatabase.open(url) as opened:
        yield opened


@pytest.fixture
def study(database: StudyDatabase) -> StudyRecord:
    return database.add_study(definition(iterations=1, initial=1))


@pytest.fixture
def other(url: str, database: StudyDatabase) -> Iterator[StudyDatabase]:
    """The same database, as another process sees it."""
    del database
    with StudyDatabase.open(url) as opened:
        yield opened


class Acting(SimulatedExecutor):
    """Does something before it gives the result of a chunk."""

    def __init__(self, chunk: int, action: Callable[[], object]) -> None:
        super().__init__()
        self._chunk = chunk
        self._action = action

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        for result in super().run(tasks):
            if len(self.executed) == self._chunk:
                self._action()
            yield result


def fail(error: BaseException) -> None:
    raise error


def test_owners_differ() -> None:
    texts = {owner_text() for _ in range(10)}
    assert len(texts) == 10
    assert all(" pid " in text and len(text) <= 200 for text in texts)


def test_a_study_has_its_owner_while_it_runs(database: StudyDatabase, other: StudyDatabase, study: StudyRecord) -> None:
    seen = []
    run_study(database, study, Acting(2, lambda: seen.append(other.study(study.name))))
    (running,) = seen
    assert running.state is StudyState.RUNNING
    assert running.owner is not None
    finished = database.study(study.name)
    assert (finished.state, finished.owner) == (StudyState.FINISHED, None)
    texts = [line.text for line in database.logs(study)]
    assert texts[0] == f"taken up by {running.owner}"
    assert texts[-1] == "finished"


def test_a_second_coordinator_is_refused(database: StudyDatabase, other: StudyDatabase, study: StudyRecord) -> None:
    def try_too() -> None:
        with pytest.raises(LeaseHeldError, match="one coordinator at a time"):
            run_study(other, study, SimulatedExecutor())

    run_study(database, study, Acting(2, try_too))
    assert database.study(study.name).state is StudyState.FINISHED


def test_a_coordinator_that_is_replaced_writes_nothing_more(
    database: StudyDatabase, other: StudyDatabase, study: StudyRecord
) -> None:
    expected = []

    def take_over() -> None:
        run_study(other, study, SimulatedExecutor(), take_over=True)
        expected.append(snapshot(other, study.name))

    executor = Acting(2, take_over)
    with pytest.raises(LeaseLostError, match="taken over"):
        run_study(database, study, executor)
    assert len(executor.executed) == 2
    recorded = other.study(study.name)
    assert (recorded.state, recorded.error, recorded.owner) == (StudyState.FINISHED, None, None)
    assert snapshot(other, study.name) == expected[0]


def test_a_cancelled_study_stops_at_its_next_write(
    database: StudyDatabase, other: StudyDatabase, study: StudyRecord
) -> None:
    executor = Acting(2, lambda: other.cancel(study))
    with pytest.raises(LeaseLostError, match="got a study that was cancelled"):
        run_study(database, study, executor)
    assert len(executor.executed) == 2
    recorded = other.study(study.name)
    assert (recorded.state, recorded.error) == (StudyState.CANCELLED, None)
    assert database.evaluation_totals().chunks == 1


def test_the_heartbeat_notices_a_lost_lease_between_writes(
    database: StudyDatabase, other: StudyDatabase, study: StudyRecord
) -> None:
    with owned(database, study, beat_seconds=0.01) as ownership:
        other.cancel(study)
        ownership.heartbeat.join(10.0)
        assert ownership.lost
        executor = SimulatedExecutor()
        with pytest.raises(LeaseLostError, match="cancelled"):
            run_study(database, study, executor, ownership=ownership)
    assert executor.executed == []


def test_the_heartbeat_keeps_the_lease(database: StudyDatabase, other: StudyDatabase, study: StudyRecord) -> None:
    with owned(database, study, beat_seconds=0.01):
        threading.Event().wait(0.5)
        holder = other.holder(study)
        assert holder is not None
        # The heartbeat would have to be late by more than forty beats.
        assert holder.silent_seconds < 0.45
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("heartbeat")]


@pytest.mark.parametrize("stopped", [StudyState.INTERRUPTED, StudyState.QUEUED])
def test_a_stop_ends_the_study_after_the_chunk_in_flight(
    database: StudyDatabase, study: StudyRecord, stopped: StudyState
) -> None:
    executor = SimulatedExecutor()
    claimed = database.claim_next("daemon")
    assert claimed is not None
    with pytest.raises(Stopped), owned(database, study, lease=claimed[1], stopped=stopped) as ownership:
        run_study(database, study, executor, ownership=ownership, stop=lambda: len(executor.executed) >= 2)
    recorded = database.study(study.name)
    assert (recorded.state, recorded.owner, recorded.error) == (stopped, None, None)
    assert recorded.attempts == (0 if stopped is StudyState.QUEUED else 1)
    assert database.evaluation_totals().chunks == 2
    resumed = SimulatedExecutor()
    run_study(database, study, resumed)
    assert resumed.executed[0].chunk == 2


def test_a_stop_before_the_first_chunk_runs_none(database: StudyDatabase, study: StudyRecord) -> None:
    executor = SimulatedExecutor()
    with pytest.raises(Stopped):
        run_study(database, study, executor, stop=lambda: True)
    assert executor.executed == []


def test_a_failure_keeps_its_traceback_and_its_line_in_the_log(database: StudyDatabase, study: StudyRecord) -> None:
    with pytest.raises(DataError):
        run_study(database, study, Acting(1, lambda: fail(DataError("an image must be readable", place="image 7"))))
    recorded = database.study(study.name)
    assert recorded.state is StudyState.FAILED
    assert recorded.error == "an image must be readable (in image 7)"
    assert recorded.traceback is not None
    assert recorded.traceback.startswith("Traceback")
    assert "in fail" in recorded.traceback
    assert database.logs(study)[-1].text == recorded.error


def test_an_error_that_is_not_ours_is_recorded_too(database: StudyDatabase, study: StudyRecord) -> None:
    with pytest.raises(ZeroDivisionError):
        run_study(database, study, Acting(1, lambda: 1 // 0))
    recorded = database.study(study.name)
    assert (recorded.state, recorded.owner) == (StudyState.FAILED, None)
    assert recorded.error == "ZeroDivisionError: integer division or modulo by zero"


def test_what_cannot_be_recorded_does_not_hide_the_error(
    database: StudyDatabase, study: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DatabaseError("the study database must be usable", actual="database or disk is full")

    def fill_the_disk() -> None:
        monkeypatch.setattr(database, "set_state", refuse)
        raise DataError("an image must be readable")

    with pytest.raises(DataError, match="an image"):
        run_study(database, study, Acting(1, fill_the_disk))


def test_a_finished_study_is_not_run_again(database: StudyDatabase, study: StudyRecord) -> None:
    run_study(database, study, SimulatedExecutor())
    with pytest.raises(StudyConflictError):
        run_study(database, study, SimulatedExecutor())
    recorded = database.study(study.name)
    assert (recorded.state, recorded.error, recorded.owner) == (StudyState.FINISHED, None, None)


def test_a_study_whose_process_unwinds_is_free_at_once(database: StudyDatabase, study: StudyRecord) -> None:
    with pytest.raises(Killed):
        run_study(database, study, Acting(1, lambda: fail(Killed())))
    recorded = database.study(study.name)
    assert (recorded.state, recorded.owner) == (StudyState.RUNNING, None)


@pytest.mark.slow
def test_runs_leave_no_connections_behind(database: StudyDatabase, tmp_path: Path) -> None:
    """A daemon runs study after study on one database object."""

    def connections() -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(str(link.resolve()).startswith(str(tmp_path / "study.db")) for link in links)

    counts = []
    for name in ("one", "two", "three"):
        run_study(database, database.add_study(definition(name, iterations=1, initial=1)), SimulatedExecutor())
        counts.append(connections())
    assert counts[0] == counts[2]
