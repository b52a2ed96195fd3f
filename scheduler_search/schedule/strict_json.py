"""Reading JSON without the leniencies of Python's parser.

Knows: no NaN, no number too large for a float, no key twice, no half of a surrogate pair. Does not know: schedules.
"""

from __future__ import annotations

import json
import math

from scheduler_search.errors import ScheduleDocumentError


def load_strict_json(text: str, place: str) -> object:
    """The value of a JSON text.

    Raises:
        ScheduleDocumentError: no JSON, or JSON that readers would not agree about.
    """

    def refuse(rule: str, actual: str) -> ScheduleDocumentError:
        return ScheduleDocumentError(rule, actual=actual, place=place)

    def number(literal: str) -> float:
        value = float(literal)
        if not math.isfinite(value):
            raise refuse("numbers must be finite", literal)
        return value

    def constant(literal: str) -> float:
        raise refuse("numbers must be finite", literal)

    def mapping(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise refuse("a key must not be there twice", repr(twice))
        return result

    try:
        value = json.loads(text, parse_float=number, parse_constant=constant, object_pairs_hook=mapping)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise refuse("text must be Unicode characters", repr(error.object[error.start : error.end])) from error
    except (ValueError, RecursionError) as error:  # json.JSONDecodeError, and digits or depth beyond Python's limits
        raise refuse("a schedule document must be JSON", str(error)) from error
    return value
