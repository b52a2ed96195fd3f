"""What every study database must do about the results of a study, schedules and fronts, whatever server it lies on.

Part of ``StoreConformance``, which gives the fixtures.
"""

from __future__ import annotations

import dataclasses
import math

import pytest

from scheduler_search.errors import DatabaseError
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.front import BaselineScore, FrontPoint
from scheduler_search.study.states import StudyRecord


class ResultConformance:
    # Schedules

    def test_a_schedule_is_recorded_once_and_replaced_on_request(
        self, database: StudyDatabase, study: StudyRecord
    ) -> None:
        assert database.schedule(study) is None
        for _ in range(2):
            database.record_schedule(study, 1, '{"a": "é"}\n', "sha256:a", max_drop=0.01, loss_limit=0.003)
        assert database.schedule(study) == database.schedule(study, 1) == '{"a": "é"}\n'
        with pytest.raises(
            DatabaseError, match=r"the schedule must not change once recorded.*study 'first', version 1"
        ):
            database.record_schedule(study, 1, "{}", "sha256:b")
        database.record_schedule(study, 1, "{}", "sha256:b", replace=True)
        assert database.schedule(study) == "{}"

    def test_the_newest_version_of_a_schedule_is_the_default(self, database: StudyDatabase, study: StudyRecord) -> None:
        for version in (2, 1):
            database.record_schedule(study, version, str(version), "sha256:a")
        assert database.schedule(study) == "2"
        assert database.schedule(study, 1) == "1"
        assert database.schedule(study, 3) is None

    def test_a_study_has_one_schedule_per_target(self, database: StudyDatabase, study: StudyRecord) -> None:
        for target in ("keep-0.25", "drop-0.02"):
            database.record_schedule(study, 1, target, "sha256:a", target=target)
        assert database.schedule(study) is None
        assert database.schedule(study, target="keep-0.25") == "keep-0.25"
        assert database.exported_targets(study) == ["drop-0.02", "keep-0.25"]
        with pytest.raises(DatabaseError, match=r"version 1, keep-0.25"):
            database.record_schedule(study, 1, "{}", "sha256:b", target="keep-0.25")
        database.record_schedule(study, 1, "{}", "sha256:b", target="keep-0.25", replace=True)
        assert database.schedule(study, target="keep-0.25") == "{}"
        assert database.schedule(study, target="drop-0.02") == "drop-0.02"

    # Fronts

    def test_a_front_is_recorded_once(self, database: StudyDatabase, study: StudyRecord) -> None:
        points = [
            FrontPoint(budget, 1.5, 2e12 * budget, 0.1 + budget, 0.02, budget - 0.9, 0.01, budget == 0.5)
            for budget in (0.75, 0.5, 0.25)
        ]
        assert database.front(study) == []
        for _ in range(2):
            database.record_front(study, points)
        assert database.front(study) == points
        with pytest.raises(DatabaseError, match="the front must not change"):
            database.record_front(study, points[:2])
        with pytest.raises(DatabaseError, match="finite"):
            database.record_front(study, [dataclasses.replace(points[0], score=math.nan)])
        assert database.front(study) == points

    def test_scores_of_baselines_are_recorded_once(self, database: StudyDatabase, study: StudyRecord) -> None:
        scores = [BaselineScore(0.25, name, 1e12, 0.7, -0.1, 1e-4) for name in ("uniform", "fastv")]
        assert database.baselines(study) == []
        for _ in range(2):
            database.record_baselines(study, scores)
        assert database.baselines(study) == scores
        with pytest.raises(DatabaseError, match="the baselines must not change"):
            database.record_baselines(study, list(reversed(scores)))
        with pytest.raises(DatabaseError, match="finite"):
            database.record_baselines(study, [dataclasses.replace(scores[0], variance=math.inf)])
