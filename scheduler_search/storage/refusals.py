"""What the study database refuses, in words.

Knows: how a contradiction between what is recorded and what is given reads. Does not know: rows or transactions.
"""

from __future__ import annotations

from scheduler_search.errors import DatabaseError


def contradiction(what: str, recorded: object, given: object, place: str) -> DatabaseError:
    """The error of recording something else in the place of what is recorded."""
    return DatabaseError(
        f"the {what} must not change once recorded",
        actual=short(f"{given} instead of {recorded}"),
        place=place,
        remedy="the computation is not repeatable, or the database was edited",
    )


def short(text: str) -> str:
    """The text, cut where a line would grow too long."""
    return text if len(text) <= 200 else text[:197] + "..."
