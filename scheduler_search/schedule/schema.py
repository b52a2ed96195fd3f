"""The JSON Schema of a schedule document, generated from the parser's own description of it.

Knows: how to print it: ``python -m scheduler_search.schedule.schema > schedules/schedule.v1.schema.json``. Does not
know what JSON Schema cannot say: digests, that rates do not increase, that there is one per layer, which rules exist.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from scheduler_search.schedule.wire import WireDocument

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schedule_json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of format version 1, as a JSON object."""
    head = {"$schema": SCHEMA_DIALECT, "$id": "schedule.v1.schema.json"}
    schema = head | WireDocument.model_json_schema() | {"title": "Keep-rate schedule, format version 1"}
    for part in schema["$defs"].values():
        if "description" in part:  # of a docstring, what it says to Python's readers stays there
            part["description"] = part["description"].split("\n\n")[0]
    return schema


def schedule_json_schema_text() -> str:
    """The text of ``schedules/schedule.v1.schema.json``."""
    return json.dumps(schedule_json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schedule_json_schema_text())
