"""The state table of a study."""

from __future__ import annotations

from scheduler_search.study.states import TRANSITIONS, StudyState


def test_the_table_knows_every_state() -> None:
    assert set(TRANSITIONS) == set(StudyState)


def test_every_state_can_be_reached_and_only_finished_is_final() -> None:
    reached = {StudyState.QUEUED}
    while new := {after for before in reached for after in TRANSITIONS[before]} - reached:
        reached |= new
    assert reached == set(StudyState)
    assert [state for state in StudyState if not TRANSITIONS[state]] == [StudyState.FINISHED]


def test_a_killed_study_can_run_on() -> None:
    assert StudyState.RUNNING.may_become(StudyState.RUNNING)
    assert StudyState.INTERRUPTED.may_become(StudyState.RUNNING)
    assert StudyState.FAILED.may_become(StudyState.RUNNING)
    assert not StudyState.FINISHED.may_become(StudyState.RUNNING)
