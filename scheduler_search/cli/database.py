"""`database`: make, upgrade, describe and copy a study database.

Knows: how its state is printed. Does not know: how any of it is done (``storage``).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scheduler_search.cli.render import plain_table

if TYPE_CHECKING:
    from scheduler_search.storage import DatabaseOverview
    from scheduler_search.study.states import EvaluationTotals


def init_database(url: str) -> None:
    """Make our tables and Optuna's, so that those who search need no right to make any.

    Raises:
        DatabaseError: the database cannot be written, or belongs to something else.
    """
    from scheduler_search.storage import StudyDatabase, database_exists, optuna_storage

    existed = database_exists(url)
    with StudyDatabase.open(url) as database:
        optuna_storage(database)
        overview = database.overview()
    state = "is ready" if existed else "is made"
    print(f"the study database {overview.url} {state}: {overview.server}, version {overview.version}")


def upgrade(url: str) -> None:
    """Bring the database to this program's version.

    Raises:
        DatabaseError: there is none, or it is newer, foreign or half made.
    """
    from scheduler_search.storage import upgrade_database

    before, after = upgrade_database(url)
    if before == after:
        print(f"the study database has version {after} already")
    else:
        print(f"upgraded the study database from version {before} to {after}")


def print_database(url: str, as_json: bool) -> None:
    """Print server, version, rows of every table, studies by state, and how often evaluations were shared."""
    from scheduler_search.storage import StudyDatabase

    with StudyDatabase.open(url, create=False) as database:
        overview, totals = database.overview(), database.evaluation_totals()
    if as_json:
        print(json.dumps(_document(overview, totals), indent=2))
    else:
        _print_tables(overview, totals)


def backup(url: str, file: Path) -> None:
    """Copy a database that may be in use to a new file.

    Raises:
        DatabaseError: the file exists or cannot be written, or the database is not SQLite.
    """
    from scheduler_search.storage import backup_database

    backup_database(url, file)
    print(f"wrote {file}; use it with --database sqlite:///{file}")


def _document(overview: DatabaseOverview, totals: EvaluationTotals) -> dict[str, object]:
    return {
        "url": overview.url,
        "server": overview.server,
        "version": overview.version,
        "rows": dict(overview.rows),
        "studies": {state.value: count for state, count in overview.studies.items()},
        "evaluations": asdict(totals),
    }


def _print_tables(overview: DatabaseOverview, totals: EvaluationTotals) -> None:
    console = Console()
    console.print(f"{overview.url}: {overview.server}, version {overview.version}", soft_wrap=True, highlight=False)
    counts = [[state.value, str(count)] for state, count in overview.studies.items() if count]
    console.print(plain_table("studies", ("state", "studies"), counts))
    console.print(
        plain_table("tables", ("table", "rows"), [[name, str(count)] for name, count in overview.rows.items()])
    )
    share = f" ({totals.hits / (totals.hits + totals.chunks):.0%})" if totals.hits else ""
    found = f"{totals.hits} hits{share} instead of computing a chunk again"
    console.print(f"{totals.evaluations} evaluations of {totals.chunks} chunks; {found}", highlight=False)
