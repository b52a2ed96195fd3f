"""A trial of a campaign: a process of a Ray cluster that runs whole studies, one after the other.

Knows: how a study is claimed by a campaign and run to its end. Does not know: which studies a campaign has, or what
becomes of one that fails here (``campaign``).
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import tune

from scheduler_search.cluster.events import WorkerEvent
from scheduler_search.cluster.lines import Level, Lines, level_of, line_of, shortened
from scheduler_search.coordinator import owned, owner_text, run_study
from scheduler_search.errors import DatabaseError, LeaseHeldError, LeaseLostError
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.states import Lease, StudyRecord, StudyState

if TYPE_CHECKING:
    from scheduler_search.study.values import Executor

STUDY = "study"
_LOOK_SECONDS = 0.5
_ENDED = (StudyState.FINISHED, StudyState.CANCELLED)


class StudyTrial(tune.Trainable):
    """Runs the study of its configuration in one step. Its process goes on with other studies of the campaign.

    What the study comes to is in the study database alone; Tune is told nothing but that the trial is over. A study
    that raises has failed this attempt, and Tune tries it again while there are attempts left.
    """

    def setup(self, config: dict[str, Any], *, url: str, run: str) -> None:
        """Take up a configuration.

        Args:
            url: of the study database; from Ray's object store, since it may hold a password.
            run: of the campaign, different for each; it marks the leases of all its trials.
        """
        self._name = str(config[STUDY])
        self._url = url
        self._run = run
        self._kept: tuple[object, Executor] | None = None
        self._lines = Lines()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another study in the same process."""
        self._name = str(new_config[STUDY])
        return True

    def step(self) -> dict[str, Any]:
        """Run the study to its end."""
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with StudyDatabase.open(self._url, create=False) as database:
            lease = wait_for_claim(database, self._name, self._run)
            # Taken over or cancelled: whoever did it goes on with it, or nobody shall.
            with suppress(LeaseLostError):
                if lease is not None:
                    self._run_claimed(database, lease)
        return {"done": True}

    def cleanup(self) -> None:
        """Release the model."""
        self._drop()

    def _run_claimed(self, database: StudyDatabase, lease: Lease) -> None:
        study = database.study(self._name)
        # What was said before is none of this study's business.
        self._lines.take()
        with owned(database, study, lease=lease) as ownership:
            try:
                executor = self._executor(database, study)
                run_study(database, study, executor, lambda _: self._log_own(database, study), ownership=ownership)
            finally:
                self._log_own(database, study)

    def _log_own(self, database: StudyDatabase, study: StudyRecord) -> None:
        """What this process logged and warned of; the workers of a study tell theirs themselves."""
        for level, text in self._lines.take():
            _log(database, study, level_of(level), shortened(text))

    def _executor(self, database: StudyDatabase, study: StudyRecord) -> Executor:
        """The one of the study before it, where both differ in nothing that an executor is made of."""
        definition = study.definition
        if definition.workers.executor == "ray":
            self._drop()
            executor = _ray_executor(database, study)
            self._kept = (None, executor)
            return executor
        key = _executor_key(definition)
        if self._kept is None or self._kept[0] != key:
            from scheduler_search.evaluation import LocalExecutor

            self._drop()
            self._kept = (key, LocalExecutor(definition))
        return self._kept[1]

    def _drop(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept[1].close()


def wait_for_claim(database: StudyDatabase, name: str, run: str) -> Lease | None:
    """Claim a study as soon as nobody else is at work on it; None where it is finished or cancelled.

    A lease of the same run is that of a trial that died: Tune runs a study in one trial at a time.
    """
    owner = f"{owner_text()}, {run}"
    while True:
        study = database.study(name)
        if study.state in _ENDED:
            return None
        holder = database.holder(study)
        try:
            return database.claim(study, owner, take_over=holder is not None and is_of(holder.owner, run))
        except LeaseHeldError:
            time.sleep(_LOOK_SECONDS)


def is_of(owner: str, run: str) -> bool:
    """Whether a lease is that of a trial of ``run``."""
    return owner.endswith(f", {run}")


def _executor_key(definition: StudyDefinition) -> object:
    """Of two definitions with equal keys an executor cannot tell which it was made for."""
    workers = definition.workers
    return (definition.seed, definition.model, definition.data, workers, definition.search.objective)


def _ray_executor(database: StudyDatabase, study: StudyRecord) -> Executor:
    """Workers in the placement group of the trial, whose losses and warnings go to the study's log."""
    from scheduler_search.cluster.executor import RayExecutor

    return RayExecutor(study.definition, report=partial(_hear, database, study))


def _hear(database: StudyDatabase, study: StudyRecord, event: WorkerEvent) -> None:
    if (line := line_of(event)) is not None:
        _log(database, study, *line)


def _log(database: StudyDatabase, study: StudyRecord, level: Level, text: str) -> None:
    # A database that cannot be written is met by the study's own next write too, which can say so.
    with suppress(DatabaseError):
        database.add_log(study, level, text)
