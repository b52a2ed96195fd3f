"""The one exception tree of the project.

Knows: how an error of ours is worded (rule, actual value, place, remedy), its exit code, and that it survives pickling
on its way through a process boundary. Does not know: who raises it or who prints it.
"""

from __future__ import annotations


class SchedulerSearchError(Exception):
    """A rule of this product was broken by its input or its surroundings.

    Args:
        rule: what must hold, as a sentence without a full stop.
        actual: the value that broke it, already short enough to print; None where there is none.
        place: where it was found (file and key, model, layer); None where the rule says it all.
        remedy: what the user can do about it.
    """

    exit_code = 2

    def __init__(
        self, rule: str, *, actual: object = None, place: str | None = None, remedy: str | None = None
    ) -> None:
        self.rule = rule
        self.actual = actual
        self.place = place
        self.remedy = remedy
        super().__init__(rule)

    def __str__(self) -> str:
        text = self.rule
        if self.actual is not None:
            text += f", but got {self.actual}"
        if self.place is not None:
            text += f" (in {self.place})"
        if self.remedy is not None:
            text += f"; {self.remedy}"
        return " ".join(text.split())

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.rule, self.actual, self.place, self.remedy))


def _rebuild(
    kind: type[SchedulerSearchError], rule: str, actual: object, place: str | None, remedy: str | None
) -> SchedulerSearchError:
    return kind(rule, actual=actual, place=place, remedy=remedy)


class RuleError(SchedulerSearchError):
    """A token-reduction rule is unknown, or one of its parameters is."""


class ScheduleError(SchedulerSearchError):
    """Keep rates, a family or a budget that cannot be a schedule."""


class ScheduleDocumentError(ScheduleError):
    """A schedule file that cannot be read, or must not be trusted."""


class ScheduleMismatchError(ScheduleError):
    """A schedule made for another model than the one at hand."""


class UnsupportedError(SchedulerSearchError):
    """The runtime refuses a model or a use of it that it could not serve exactly."""


class ModelError(SchedulerSearchError):
    """A model or its processor cannot be loaded."""


class DataError(SchedulerSearchError):
    """A data set is missing, empty, unreadable, or shares images between splits."""


class StudyFileError(SchedulerSearchError):
    """A study file is missing, malformed, or asks for something that cannot be."""


class DatabaseError(SchedulerSearchError):
    """The study database cannot be opened, or is not ours."""


class StudyNotFoundError(DatabaseError):
    """No study of that name is in the database."""


class StudyConflictError(DatabaseError):
    """A study of that name exists with another definition, or is not in the state that the request needs."""


class LeaseHeldError(DatabaseError):
    """Another coordinator runs the study: it renewed its lease a moment ago."""


class LeaseLostError(DatabaseError):
    """The study was taken over or cancelled; nothing was written since."""


class NotRecordedError(DatabaseError):
    """What was asked for must be computed first."""


class SearchError(SchedulerSearchError):
    """A search was asked for something that its recorded state does not allow."""


class ExportError(SchedulerSearchError):
    """A schedule cannot be exported."""


class GateError(ExportError):
    """The schedule lost more on the validation split than the caller allowed; nothing was written."""

    exit_code = 3


class ClusterError(SchedulerSearchError):
    """A Ray cluster cannot be reached, must not be used, or can hold no worker."""


class WorkerError(ClusterError):
    """A chunk failed on worker after worker, or no worker could be started."""


class WorkerMismatchError(ClusterError):
    """A worker has another model, other data or other software than the worker that described them first."""
