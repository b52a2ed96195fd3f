"""What every study database must do about leases, logs and hits, whatever server it lies on.

Part of ``StoreConformance``, which gives the fixtures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import optuna
import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from scheduler_search.errors import DatabaseError, LeaseHeldError, LeaseLostError
from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase, optuna_storage
from scheduler_search.storage.tables import StudyRow, Table
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.front import BaselineScore, FrontPoint
from scheduler_search.study.states import (
    Decision,
    EvaluationTotals,
    Figures,
    Lease,
    StageRecord,
    StudyRecord,
    StudyState,
)
from tests.coordinator.simulated import SimulatedExecutor

RATES = (1.0, 0.5)
REDUCTION = Reduction(RATES, make_rule("attention-rank"))
FIGURES = Figures(0.5, 0.0, 0.01, 0.5, samples=2, total=2)
DECISION = Decision(0, "layer 3", 1, "keep_rate", 0.5, RATES, 0.5, 0.5)
POINT = FrontPoint(0.5, 1.0, 1e12, 0.5, 0.01, 0.0, 0.01, True)
BASELINE = BaselineScore(0.5, "uniform", 1e12, 0.5, 0.0, 0.01)


def named(name: str, samples: int = 8) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "name": name,
            "model": {"id": "testbed:tiny-llava"},
            "data": {"source": "testbed", "search": {"samples": samples}},
        }
    )


# Every method that writes, as a coordinator calls it: study, stage and evaluation are recorded, trial 0 is begun.
# In an order in which one does not stand in the way of the next.
WRITES: dict[str, Callable[[StudyDatabase, StudyRecord, StageRecord, int], object]] = {
    "put_back": lambda database, study, *_: database.put_back(study),
    "add_study": lambda database, *_: database.add_study(named("another")),
    "set_state": lambda database, study, *_: database.set_state(study, StudyState.FAILED, "reason"),
    "stage": lambda database, study, *_: database.stage(study, 1, "layer 6", "sha256:domain"),
    "begin_trial": lambda database, _, stage, __: database.begin_trial(stage, 1, 1, RATES, "sha256:key"),
    "finish_trial": lambda database, _, stage, __: database.finish_trial(stage, 0, FIGURES),
    "decide": lambda database, _, stage, __: database.decide(stage, DECISION),
    "evaluation": lambda database, *_: database.evaluation("sha256:other", "search", "sha256:data", REDUCTION, 1),
    "take_up": lambda database, *_: database.take_up("sha256:third", "search", "sha256:data", REDUCTION, 1),
    "add_chunk": lambda database, _, __, evaluation: database.add_chunk(evaluation, 0, [0.5]),
    "add_hits": lambda database, _, __, evaluation: database.add_hits(evaluation, 1),
    "record_front": lambda database, study, *_: database.record_front(study, [POINT]),
    "record_baselines": lambda database, study, *_: database.record_baselines(study, [BASELINE]),
    "record_schedule": lambda database, study, *_: database.record_schedule(study, 1, "{}", "sha256:a"),
    "add_log": lambda database, study, *_: database.add_log(study, "info", "text"),
    "submit": lambda database, *_: database.submit(named("another"), 3),
    "describe_model": lambda database, study, *_: database.describe_model(study, SimulatedExecutor().model()),
    "describe_split": lambda database, study, *_: database.describe_split(study, SimulatedExecutor().split("search")),
    "record_prefill": lambda database, *_: database.record_prefill("sha256:key", 1.0, 2.0),
    "renew": lambda database, study, *_: database.renew(Lease(study.id, study.name, "first", 1)),
}


class LeaseConformance:
    @pytest.fixture
    def other(self, url: str, database: StudyDatabase) -> Iterator[StudyDatabase]:
        """The same database, as another process sees it."""
        del database
        with StudyDatabase.open(url) as other:
            yield other

    # Leases

    def test_a_study_has_one_owner(self, database: StudyDatabase, other: StudyDatabase, study: StudyRecord) -> None:
        assert database.holder(study) is None
        lease = database.claim(study, "first")
        assert (lease.study_id, lease.name, lease.owner) == (study.id, "first", "first")
        with pytest.raises(LeaseHeldError, match=r"one coordinator at a time.*got first, who was at work 0 seconds"):
            other.claim(study, "second")
        holder = other.holder(study)
        assert holder is not None
        assert holder.owner == other.study("first").owner == "first"
        assert 0.0 <= holder.silent_seconds < 10.0

    def test_a_silent_owner_gives_way(self, database: StudyDatabase, other: StudyDatabase, study: StudyRecord) -> None:
        database.claim(study, "first")
        time.sleep(0.15)
        with pytest.raises(LeaseHeldError):
            other.claim(study, "second", silent_seconds=30.0)
        lease = other.claim(study, "second", silent_seconds=0.1)
        assert lease.epoch == 2

    def test_a_renewed_lease_is_not_silent(
        self, database: StudyDatabase, other: StudyDatabase, study: StudyRecord
    ) -> None:
        lease = database.claim(study, "first")
        time.sleep(0.3)
        database.renew(lease)
        holder = other.holder(study)
        assert holder is not None
        assert holder.silent_seconds < 0.3

    def test_a_released_study_is_free(self, database: StudyDatabase, other: StudyDatabase, study: StudyRecord) -> None:
        database.release(database.claim(study, "first"))
        assert database.holder(study) is None
        assert other.claim(study, "second").epoch == 2

    def test_an_owner_claims_again_after_a_lost_answer(self, database: StudyDatabase, study: StudyRecord) -> None:
        database.claim(study, "first")
        lease = database.claim(study, "first")
        database.renew(lease)

    def test_releasing_a_lost_lease_does_nothing(
        self, database: StudyDatabase, other: StudyDatabase, study: StudyRecord
    ) -> None:
        lease = database.claim(study, "first")
        other.claim(study, "second", take_over=True)
        database.release(lease)
        holder = database.holder(study)
        assert holder is not None
        assert holder.owner == "second"
        with pytest.raises(LeaseLostError, match="taken over by second"):
            database.renew(lease)

    def test_of_several_that_claim_at_once_one_succeeds(self, url: str, study: StudyRecord) -> None:
        leases: list[Lease] = []
        refused: list[str] = []
        barrier = threading.Barrier(4)

        def claim(name: str) -> None:
            with StudyDatabase.open(url) as database:
                barrier.wait()
                try:
                    leases.append(database.claim(study, name))
                except LeaseHeldError:
                    refused.append(name)

        threads = [threading.Thread(target=claim, args=(f"owner {index}",)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(leases), len(refused)) == (1, 3)

    @pytest.mark.parametrize("cause", ["taken over", "cancelled", "deleted"])
    def test_who_lost_the_lease_writes_nothing(
        self,
        database: StudyDatabase,
        other: StudyDatabase,
        study: StudyRecord,
        stage: StageRecord,
        evaluation: int,
        cause: str,
    ) -> None:
        lease = database.claim(study, "first")
        with database.holding(lease):
            database.begin_trial(stage, 0, 1, RATES, "sha256:key")
            if cause == "taken over":
                other.claim(study, "second", take_over=True)
            elif cause == "cancelled":
                other.cancel(study)
            else:
                self.delete(other, study)
            before = self.contents(other)
            for write in WRITES.values():
                with pytest.raises(LeaseLostError, match=cause):
                    write(database, study, stage, evaluation)
            assert self.contents(other) == before

    def test_who_holds_the_lease_writes(
        self, database: StudyDatabase, study: StudyRecord, stage: StageRecord, evaluation: int
    ) -> None:
        database.set_state(study, StudyState.RUNNING)
        with database.holding(database.claim(study, "first")):
            database.begin_trial(stage, 0, 1, RATES, "sha256:key")
            for method, write in WRITES.items():
                before = self.contents(database)
                write(database, study, stage, evaluation)
                assert self.contents(database) != before, method

    def test_the_list_of_writes_is_complete(self) -> None:
        """A method that is added is added to WRITES, or here where no coordinator calls it, or it writes nothing."""
        reading = {"check_definition", "study", "studies", "stages", "trials", "chunk_scores", "evaluation_totals"}
        reading |= {"front", "baselines", "schedule", "exported_targets", "logs", "holder", "overview"}
        reading |= {"model_description", "split_description", "prefill", "scores_of"}
        of_others = {"claim", "claim_next", "release", "cancel", "retry", "holding", "guard"}
        of_connections = {"open", "close", "close_later", "retrying", "alone", "backup", "url"}
        public = {name for name in dir(StudyDatabase) if not name.startswith("_")}
        assert public - reading - of_others - of_connections == set(WRITES)

    def test_optuna_writes_only_under_the_lease(
        self, database: StudyDatabase, other: StudyDatabase, study: StudyRecord
    ) -> None:
        storage = optuna_storage(database)
        database.guard(storage)
        with database.holding(database.claim(study, "first")):
            mirrored = optuna.create_study(study_name="first/01", storage=storage, direction="maximize")
            trial = mirrored.ask({"candidate": optuna.distributions.IntDistribution(0, 3)})
            other.claim(study, "second", take_over=True)
            with pytest.raises(LeaseLostError):
                mirrored.ask()
            with pytest.raises(LeaseLostError):
                trial.set_user_attr("score", 0.5)
            with pytest.raises(LeaseLostError):
                mirrored.tell(trial, 0.5)
        (found,) = optuna.load_study(study_name="first/01", storage=optuna_storage(other)).trials
        assert (found.state, found.user_attrs, found.values) == (optuna.trial.TrialState.RUNNING, {}, None)

    def test_a_claim_waits_for_what_optuna_is_about_to_commit(
        self, database: StudyDatabase, other: StudyDatabase, study: StudyRecord
    ) -> None:
        storage = optuna_storage(database)
        database.guard(storage)
        claim = threading.Thread(target=lambda: other.claim(study, "second", take_over=True))
        waited = []

        def claim_meanwhile(_: Session) -> None:
            claim.start()
            claim.join(0.3)
            waited.append(claim.is_alive())

        with database.holding(database.claim(study, "first")):
            mirrored = optuna.create_study(study_name="first/01", storage=storage, direction="maximize")
            trial = mirrored.ask()
            event.listen(storage.scoped_session, "before_commit", claim_meanwhile, once=True)
            storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.COMPLETE, [0.5])
            claim.join()
        assert waited == [True]
        holder = other.holder(study)
        assert holder is not None
        assert holder.owner == "second"

    # Logs and hits

    def test_a_log_keeps_its_order_and_gives_the_newest_lines(
        self, database: StudyDatabase, study: StudyRecord
    ) -> None:
        second = database.add_study(named("second"))
        for index in range(5):
            database.add_log(study, "info", f"line {index}")
        database.add_log(second, "warning", "of another")
        assert [line.text for line in database.logs(study)] == [f"line {index}" for index in range(5)]
        assert [line.text for line in database.logs(study, limit=2)] == ["line 3", "line 4"]
        (line,) = database.logs(second)
        assert (line.level, line.written.tzinfo is not None) == ("warning", True)

    def test_a_log_has_three_levels(self, database: StudyDatabase, study: StudyRecord) -> None:
        with pytest.raises(DatabaseError):
            database.add_log(study, "loud", "text")  # type: ignore[arg-type]

    def test_totals_count_what_was_computed_and_what_was_read_again(
        self, database: StudyDatabase, evaluation: int
    ) -> None:
        assert database.evaluation_totals() == EvaluationTotals(1, 0, 0, 0)
        database.add_chunk(evaluation, 0, [0.5, 1.0])
        database.add_chunk(evaluation, 1, [0.5])
        database.add_hits(evaluation, 2)
        database.add_hits(evaluation, 1)
        assert database.evaluation_totals() == EvaluationTotals(evaluations=1, chunks=2, samples=3, hits=3)

    @staticmethod
    def contents(database: StudyDatabase) -> dict[str, list[tuple[object, ...]]]:
        """Every row of every table of ours."""
        with database._read() as session:
            return {
                table.name: sorted(map(tuple, session.execute(table.select())), key=repr)
                for table in Table.metadata.sorted_tables
            }

    @staticmethod
    def delete(database: StudyDatabase, study: StudyRecord) -> None:
        with database._write() as session:
            session.execute(Table.metadata.tables["search_studies"].delete().where(StudyRow.id == study.id))
