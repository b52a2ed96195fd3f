"""Waiting for a study that another process ran a moment ago. Knows no more of leases than who holds one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from scheduler_search.storage import StudyDatabase
    from scheduler_search.study.states import Holder, StudyRecord

_LOOK_SECONDS = 0.5


def wait_for_lease(database: StudyDatabase, study: StudyRecord) -> None:
    """Count down until the owner of a study has been silent for long enough; at once where nobody owns it.

    Raises:
        LeaseHeldError: it was not silent.
    """
    from scheduler_search.storage.leases import SILENT_SECONDS
    from scheduler_search.storage.refusals import lease_held

    first = holder = database.holder(study)
    if first is None or first.silent_seconds >= SILENT_SECONDS:
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(_countdown(first, SILENT_SECONDS), soft_wrap=True, highlight=False)
    with console.status("") as status:
        silent = 0.0
        while holder is not None and holder.silent_seconds < SILENT_SECONDS:
            if holder.owner != first.owner or holder.silent_seconds < silent:
                raise lease_held(study.name, holder.owner, holder.silent_seconds)
            silent = holder.silent_seconds
            status.update(_countdown(holder, SILENT_SECONDS))
            time.sleep(_LOOK_SECONDS)
            holder = database.holder(study)


def _countdown(holder: Holder, patience: float) -> str:
    left = patience - holder.silent_seconds
    return f"{holder.owner} was at work {holder.silent_seconds:.0f} s ago; if it stays silent, go on in {left:.0f} s"
