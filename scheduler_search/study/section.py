"""What every section of a study file is: frozen, strict, and without unknown keys.

Knows: how a rule of ours that a section breaks reaches the person who wrote it. Does not know: any section.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Frozen, strict (no value is converted but an integer to a float), without unknown keys, NaN or infinities."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )


def broken(rule: str, *, key: str | None = None, actual: str | None = None, remedy: str | None = None) -> Exception:
    """An error that ``faults`` turns into a StudyFileError; ``key`` is below the section that raises it."""
    context = {"rule": rule, "key": key, "actual": actual, "remedy": remedy}
    return PydanticCustomError("study_rule", "{rule}", context)
