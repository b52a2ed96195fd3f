"""A study that is killed goes on exactly, on every server, and repeats only the chunks in flight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage

from scheduler_search.coordinator import run_study
from scheduler_search.errors import DatabaseError
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase, optuna_storage
from scheduler_search.storage.server import ConnectionLostError
from scheduler_search.study import StudyDefinition
from scheduler_search.study.states import StudyState
from tests.coordinator.simulated import SimulatedExecutor
from tests.coordinator.test_run import DyingExecutor, Killed, definition, optuna_trials, snapshot
from tests.postgres import PostgresServer

OURS = ("set_state", "add_log", "stage", "begin_trial", "take_up", "add_chunk", "finish_trial", "decide")
OPTUNAS = ("create_new_study", "create_new_trial", "set_trial_user_attr", "set_trial_state_values")


def small() -> StudyDefinition:
    return definition(iterations=1, initial=1, batch=2)


@dataclass(frozen=True)
class Expected:
    """What an undisturbed study comes to."""

    recorded: list[object]
    mirrored: list[object]
    reduction: Reduction
    chunks: int


def run(database: StudyDatabase, executor: SimulatedExecutor) -> Reduction:
    return run_study(database, database.add_study(small()), executor)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    folder = tmp_path_factory.mktemp("undisturbed")
    with StudyDatabase.open(f"sqlite:///{folder}/study.db") as database:
        executor = SimulatedExecutor()
        reduction = run(database, executor)
        found = snapshot(database, "simulated"), optuna_trials(database, "simulated")
        return Expected(*found, reduction, len(executor.executed))


def dying(original: Callable[..., Any], nth: int, error: Callable[[], BaseException]) -> Callable[..., Any]:
    """The method, but right after its ``nth`` call is through, the process dies or the answer is lost."""
    calls = Counter[str]()

    def method(*arguments: object, **named: object) -> object:
        result = original(*arguments, **named)
        calls["all"] += 1
        if calls["all"] == nth:
            raise error()
        return result

    return method


def kill_and_go_on(url: str, call: str, nth: int, expected: Expected) -> None:
    executed = []
    with StudyDatabase.open(url) as database, pytest.MonkeyPatch.context() as patch:
        target: Any = database if call in OURS else RDBStorage
        patch.setattr(target, call, dying(getattr(target, call), nth, Killed))
        killed = SimulatedExecutor()
        with pytest.raises(Killed):
            run(database, killed)
        executed += killed.executed
    with StudyDatabase.open(url) as database:
        if database.study("simulated").state is not StudyState.FINISHED:
            resumed = SimulatedExecutor()
            assert run(database, resumed) == expected.reduction
            executed += resumed.executed
        assert snapshot(database, "simulated") == expected.recorded
        assert optuna_trials(database, "simulated") == expected.mirrored
    assert len(executed) == len({(task.chunk, task.reduction.counts(16)) for task in executed}) == expected.chunks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "nth"),
    [*((call, 2) for call in (*OURS, *OPTUNAS)), ("begin_trial", 1), ("finish_trial", 1), ("create_new_trial", 1)],
)
def test_a_kill_right_after_any_write_changes_nothing(tmp_path: Path, call: str, nth: int, expected: Expected) -> None:
    kill_and_go_on(f"sqlite:///{tmp_path}/study.db", call, nth, expected)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["begin_trial", "add_chunk", "finish_trial", "create_new_trial"])
def test_likewise_on_postgresql(postgres_url: str, call: str, expected: Expected) -> None:
    kill_and_go_on(postgres_url, call, 2, expected)


@pytest.mark.slow
def test_only_chunks_in_flight_are_repeated(tmp_path: Path, expected: Expected) -> None:
    executed = 0
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as database:
        for chunks in (0, 2, 3):
            executor = DyingExecutor(chunks)
            with pytest.raises(Killed):
                run(database, executor)
            executed += len(executor.executed) - 1
        last = SimulatedExecutor()
        assert run(database, last) == expected.reduction
        assert executed + len(last.executed) == expected.chunks
        assert snapshot(database, "simulated") == expected.recorded


# Optuna


@pytest.mark.slow
@pytest.mark.parametrize("call", OPTUNAS[1:])
def test_an_answer_of_optuna_that_is_lost_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, expected: Expected
) -> None:
    def lost() -> ConnectionLostError:
        return ConnectionLostError("the study database must be reachable")

    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as database:
        monkeypatch.setattr(RDBStorage, call, dying(getattr(RDBStorage, call), 2, lost))
        assert run(database, SimulatedExecutor()) == expected.reduction
        assert snapshot(database, "simulated") == expected.recorded
        assert optuna_trials(database, "simulated") == expected.mirrored


def edit(storage: RDBStorage, how: str) -> None:
    """What dashboards, scripts and coordinators without a lease could do to the first stage."""
    first = min(study.study_name for study in optuna.get_all_study_summaries(storage))
    study = optuna.load_study(study_name=first, storage=storage)
    if how == "deleted":
        optuna.delete_study(study_name=first, storage=storage)
    elif how == "one trial more":
        study.ask({"candidate": optuna.distributions.IntDistribution(0, 16)})
    elif how == "of another candidate":
        (candidate,) = (trial.params["candidate"] for trial in study.trials)
        optuna.delete_study(study_name=first, storage=storage)
        again = optuna.create_study(study_name=first, storage=storage, direction="maximize")
        fixed = optuna.distributions.IntDistribution(0, 16)
        again.enqueue_trial({"candidate": (candidate + 1) % 17})
        again.ask({"candidate": fixed})
    elif how == "told":
        (running,) = (trial for trial in study.trials if not trial.state.is_finished())
        study.tell(running.number, 0.123)
    elif how == "failed":
        (running,) = (trial for trial in study.trials if not trial.state.is_finished())
        study.tell(running.number, state=optuna.trial.TrialState.FAIL)


EDITS = ["deleted", "one trial more", "of another candidate", "told", "failed"]


@pytest.mark.slow
@pytest.mark.parametrize("how", EDITS)
def test_optuna_is_brought_back_to_ours_on_resume(tmp_path: Path, how: str, expected: Expected) -> None:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as database:
        with pytest.raises(Killed):
            run(database, DyingExecutor(1))
        edit(optuna_storage(database), how)
        assert run(database, SimulatedExecutor()) == expected.reduction
        assert optuna_trials(database, "simulated") == expected.mirrored


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "one trial more", "told"])
def test_optuna_is_brought_back_to_ours_while_a_study_runs(tmp_path: Path, how: str, expected: Expected) -> None:
    class Edited(SimulatedExecutor):
        def run(self, tasks: Any) -> Any:
            for result in super().run(tasks):
                if len(self.executed) == 2:
                    edit(optuna_storage(database), how)
                yield result

    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as database:
        assert run(database, Edited()) == expected.reduction
        assert snapshot(database, "simulated") == expected.recorded
        assert optuna_trials(database, "simulated") == expected.mirrored


def test_optuna_is_never_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as database:
        original = RDBStorage.create_new_trial

        def checked(storage: RDBStorage, study: int, template: Any = None) -> int:
            begun = sum(len(database.trials(stage)) for stage in database.stages(database.study("simulated")))
            identity = original(storage, study, template)
            shown = sum(summary.n_trials for summary in optuna.get_all_study_summaries(storage))
            assert shown <= begun
            return identity

        monkeypatch.setattr(RDBStorage, "create_new_trial", checked)
        run(database, SimulatedExecutor())


def test_a_database_that_optuna_cannot_write_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise DatabaseError("the study database must be usable", actual="database or disk is full")

    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as database:
        monkeypatch.setattr(RDBStorage, "set_trial_user_attr", refused)
        with pytest.raises(DatabaseError, match="disk is full"):
            run(database, SimulatedExecutor())
        assert database.study("simulated").state is StudyState.FAILED


# A server that goes away


@pytest.mark.slow
def test_a_restarted_server_costs_nothing_but_time(expected: Expected) -> None:
    class Restarting(SimulatedExecutor):
        def run(self, tasks: Any) -> Any:
            for result in super().run(tasks):
                if len(self.executed) in (2, 5):
                    server.kill9()
                    server.start()
                yield result

    with PostgresServer() as server, StudyDatabase.open(server.url(server.create_database())) as database:
        executor = Restarting()
        assert run(database, executor) == expected.reduction
        assert len(executor.executed) == expected.chunks
        assert snapshot(database, "simulated") == expected.recorded
        assert optuna_trials(database, "simulated") == expected.mirrored
