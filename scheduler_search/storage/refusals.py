"""What the study database refuses, in words.

Knows: how a contradiction between what is recorded and what is given reads. Does not know: rows or transactions.
"""

from __future__ import annotations

from scheduler_search.errors import DatabaseError, LeaseHeldError


def contradiction(what: str, recorded: object, given: object, place: str) -> DatabaseError:
    """The error of recording something else in the place of what is recorded."""
    return DatabaseError(
        f"the {what} must not change once recorded",
        actual=short(f"{given} instead of {recorded}"),
        place=place,
        remedy="the computation is not repeatable, or the database was edited",
    )


def lease_held(study: str, owner: str, silent_seconds: float) -> LeaseHeldError:
    """The error of a study that another coordinator runs."""
    return LeaseHeldError(
        "one coordinator at a time runs a study",
        actual=f"{owner}, who was at work {silent_seconds:.0f} seconds ago",
        place=f"study {study!r}",
        remedy=f"wait for it, or take the study from it with: scheduler-search resume {study} --take-over",
    )


def short(text: str) -> str:
    """The text, cut where a line would grow too long."""
    return text if len(text) <= 200 else text[:197] + "..."
