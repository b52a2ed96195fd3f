"""Model, splits and times by way of the study database: what an export reads where neither model nor data are at hand.

Knows: what is recorded while they are, and who answers from the record later. Does not know: what is exported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from scheduler_search.errors import NotRecordedError
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.key import evaluation_key
from scheduler_search.study.states import StudyRecord
from scheduler_search.study.values import (
    ChunkResult,
    ChunkTask,
    Executor,
    ModelDescription,
    SplitDescription,
    SplitName,
)


def record_descriptions(database: StudyDatabase, study: StudyRecord, executor: Executor) -> None:
    """Record how an executor describes the model of a study and each of its splits."""
    database.describe_model(study, executor.model())
    for name in study.definition.data.splits:
        database.describe_split(study, executor.split(name))


class TimedExecutor:
    """An executor whose prefills are timed once per reduction and database, or ``again``; the rest is another's."""

    def __init__(self, database: StudyDatabase, executor: Executor, *, again: bool = False) -> None:
        self._database = database
        self._executor = executor
        self._again = again
        self.model = executor.model
        self.split = executor.split
        self.run = executor.run
        self.close = executor.close

    def prefill_milliseconds(self, split: SplitName, reductions: Sequence[Reduction]) -> tuple[float, ...]:
        """Those of (a reduction that is evaluated, the unreduced model)."""
        key = _key(self._executor.split(split), reductions[0])
        times = None if self._again else self._database.prefill(key)
        if times is None:
            reduced, unreduced = self._executor.prefill_milliseconds(split, reductions)
            self._database.record_prefill(key, reduced, unreduced)
            return reduced, unreduced
        return times


class RecordedExecutor:
    """Answers for the executor of a study from the database alone.

    Every method raises NotRecordedError where the answer is not recorded; nothing is ever computed.
    """

    def __init__(self, database: StudyDatabase, study: StudyRecord) -> None:
        self._database = database
        self._study = study

    def model(self) -> ModelDescription:
        """The model as it was last loaded for the study."""
        model = self._database.model_description(self._study)
        if model is None:
            raise self._missing("the description of the model")
        return model

    def split(self, name: SplitName) -> SplitDescription:
        """The split as it was last prepared for the study."""
        split = self._database.split_description(self._study, name)
        if split is None:
            raise self._missing(f"the description of the {name} split")
        return split

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        """Yields nothing where nothing is asked for, that is, where every chunk is recorded."""
        for task in tasks:
            raise self._missing(f"chunk {task.chunk} of a schedule on the {task.split} split")
        yield from ()

    def prefill_milliseconds(self, split: SplitName, reductions: Sequence[Reduction]) -> tuple[float, ...]:
        """The recorded times of (a reduction, the unreduced model); none where they were not measured."""
        return self._database.prefill(_key(self.split(split), reductions[0])) or ()

    def close(self) -> None:
        """Nothing is held."""

    def _missing(self, what: str) -> NotRecordedError:
        return NotRecordedError(
            "without model and data, everything that an export measures must be recorded",
            actual=f"no record of {what}",
            place=f"study {self._study.name!r}",
            remedy="export it where model and data are at hand",
        )


def _key(split: SplitDescription, reduction: Reduction) -> str:
    return evaluation_key(split.context_digest, reduction, split.vision_tokens)
