"""What every study database must do about the queue, whatever server it lies on.

Part of ``StoreConformance``, which gives the fixtures.
"""

from __future__ import annotations

import time

import pytest

from scheduler_search.errors import LeaseLostError, StudyConflictError
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.states import StudyRecord, StudyState
from tests.conformance.leases import named


class QueueConformance:
    # The queue

    def test_the_queue_is_ordered_by_priority_and_then_by_age(self, database: StudyDatabase) -> None:
        for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)):
            assert database.submit(named(name), priority).priority == priority
        assert self.order(database) == ["b", "d", "a", "c", "e"]

    def test_submitting_again_changes_the_priority_only(self, database: StudyDatabase, study: StudyRecord) -> None:
        database.set_state(study, StudyState.FAILED, "reason")
        again = database.submit(study.definition, 7)
        assert (again.id, again.priority, again.state, again.error) == (study.id, 7, StudyState.FAILED, "reason")
        with pytest.raises(StudyConflictError, match="keeps its definition"):
            database.submit(named("first", samples=9))

    def test_a_claimed_study_is_not_claimed_again(
        self, database: StudyDatabase, other: StudyDatabase, study: StudyRecord
    ) -> None:
        found = database.claim_next("first")
        assert found is not None
        claimed, lease = found
        assert (claimed.id, claimed.attempts, claimed.owner) == (study.id, 1, "first")
        with database.holding(lease):
            database.set_state(claimed, StudyState.RUNNING)
        assert other.claim_next("second") is None

    def test_orphans_are_claimed(self, database: StudyDatabase, other: StudyDatabase, study: StudyRecord) -> None:
        lease = database.claim(study, "first")
        database.set_state(study, StudyState.RUNNING)
        assert other.claim_next("second") is None
        time.sleep(0.15)
        found = other.claim_next("second", silent_seconds=0.1)
        assert found is not None
        with pytest.raises(LeaseLostError):
            database.renew(lease)

    def test_a_running_study_without_owner_is_an_orphan(self, database: StudyDatabase, study: StudyRecord) -> None:
        database.set_state(study, StudyState.RUNNING)
        assert database.claim_next("first") is not None

    @pytest.mark.parametrize(
        "state", [StudyState.INTERRUPTED, StudyState.FAILED, StudyState.FINISHED, StudyState.CANCELLED]
    )
    def test_no_other_study_is_claimed(self, database: StudyDatabase, study: StudyRecord, state: StudyState) -> None:
        for step in (StudyState.RUNNING, state):
            database.set_state(study, step)
        assert database.claim_next("first") is None

    def test_a_claim_whose_answer_was_lost_counts_once(self, database: StudyDatabase, study: StudyRecord) -> None:
        del study
        assert database.claim_next("first") is not None
        found = database.claim_next("first")
        assert found is not None
        assert found[0].attempts == 1
        database.renew(found[1])

    def test_a_poisonous_study_is_given_up_and_blocks_nobody(self, database: StudyDatabase, study: StudyRecord) -> None:
        database.submit(study.definition, priority=9)
        database.submit(named("other"))
        for attempt in range(1, 4):
            found = database.claim_next(f"owner {attempt}", silent_seconds=0.0)
            assert found is not None
            assert (found[0].name, found[0].attempts) == ("first", attempt)
            database.set_state(found[0], StudyState.RUNNING)
        found = database.claim_next("owner 4", silent_seconds=0.0)
        assert found is not None
        assert found[0].name == "other"
        given_up = database.study("first")
        assert given_up.state is StudyState.FAILED
        assert given_up.error == "3 coordinators took it up, and each ended without a reason"
        assert given_up.owner is None
        assert database.logs(given_up)[-1].level == "error"

    def test_a_clean_stop_is_no_attempt(self, database: StudyDatabase, study: StudyRecord) -> None:
        for attempt in range(5):
            found = database.claim_next(f"owner {attempt}")
            assert found is not None
            database.set_state(study, StudyState.RUNNING)
            database.put_back(study)
            database.put_back(study)
            database.release(found[1])
        assert (database.study("first").attempts, database.study("first").state) == (0, StudyState.QUEUED)

    def test_cancelling_and_trying_again(self, database: StudyDatabase, study: StudyRecord) -> None:
        for _ in range(2):
            database.cancel(study)
        assert database.study("first").state is StudyState.CANCELLED
        assert [line.text for line in database.logs(study)] == ["cancelled"]
        assert database.claim_next("first") is None
        for _ in range(2):
            database.retry(study)
        assert database.claim_next("first") is not None

    def test_trying_again_forgets_error_and_attempts(self, database: StudyDatabase, study: StudyRecord) -> None:
        assert database.claim_next("first") is not None
        database.set_state(study, StudyState.FAILED, "reason", "Traceback")
        failed = database.study("first")
        assert (failed.error, failed.traceback, failed.attempts) == ("reason", "Traceback", 1)
        database.retry(study)
        queued = database.study("first")
        assert (queued.state, queued.error, queued.traceback, queued.attempts) == (StudyState.QUEUED, None, None, 0)

    def test_what_cannot_be_cancelled_or_tried_again(self, database: StudyDatabase, study: StudyRecord) -> None:
        database.set_state(study, StudyState.RUNNING)
        with pytest.raises(StudyConflictError, match=r"only a study that failed.*a running one.*'first'"):
            database.retry(study)
        database.set_state(study, StudyState.FINISHED)
        with pytest.raises(StudyConflictError, match="a finished one"):
            database.retry(study)
        with pytest.raises(StudyConflictError, match="finished to cancelled"):
            database.cancel(study)

    @staticmethod
    def order(database: StudyDatabase) -> list[str]:
        names = []
        while (found := database.claim_next("owner")) is not None:
            names.append(found[0].name)
            database.set_state(found[0], StudyState.RUNNING)
            database.set_state(found[0], StudyState.FINISHED)
        return names
