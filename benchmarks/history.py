"""A database with a long history, made from one recorded study: its rows many times over, under other names.

Knows: which columns of our tables and Optuna's name other rows. Does not know: what the rows say.
"""

from __future__ import annotations

import sqlalchemy

# Table -> column -> the table whose rows it names; our tables and Optuna's, referenced ones first.
_REFERENCES = {
    "search_studies": {"id": "search_studies"},
    "search_stages": {"id": "search_stages", "study_id": "search_studies"},
    "search_trials": {"id": "search_trials", "stage_id": "search_stages"},
    "search_trial_layers": {"trial_id": "search_trials"},
    "evaluations": {"id": "evaluations"},
    "evaluation_layers": {"evaluation_id": "evaluations"},
    "chunk_scores": {"evaluation_id": "evaluations"},
    "studies": {"study_id": "studies"},
    "study_directions": {"study_direction_id": "study_directions", "study_id": "studies"},
    "trials": {"trial_id": "trials", "study_id": "studies"},
    "trial_params": {"param_id": "trial_params", "trial_id": "trials"},
    "trial_values": {"trial_value_id": "trial_values", "trial_id": "trials"},
    "trial_user_attributes": {"trial_user_attribute_id": "trial_user_attributes", "trial_id": "trials"},
}
# Text that must differ between copies.
_NAMES = {
    "search_studies": ("name",),
    "search_trials": ("evaluation_key",),
    "evaluations": ("key",),
    "studies": ("study_name",),
}


def copy_study(url: str, copies: int) -> None:
    """Copy all studies of a database with few of them, and everything recorded of them, ``copies`` times."""
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        tables = sqlalchemy.MetaData()
        tables.reflect(connection, only=list(_REFERENCES))
        offsets = {name: _highest(connection, tables.tables[name]) for name in _REFERENCES if _has_identity(name)}
        for table in map(tables.tables.__getitem__, _REFERENCES):
            originals = sqlalchemy.select(table).subquery()
            for copy in range(1, copies + 1):
                connection.execute(_copied(table, originals, copy, offsets))
            _move_sequence(connection, table)
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    engine.dispose()


def _has_identity(name: str) -> bool:
    return name in _REFERENCES[name].values()


def _identity(table: sqlalchemy.Table) -> str:
    return next(column for column, referenced in _REFERENCES[table.name].items() if referenced == table.name)


def _highest(connection: sqlalchemy.Connection, table: sqlalchemy.Table) -> int:
    return int(connection.scalar(sqlalchemy.select(sqlalchemy.func.max(table.c[_identity(table)]))) or 0)


def _copied(
    table: sqlalchemy.Table, originals: sqlalchemy.Subquery, copy: int, offsets: dict[str, int]
) -> sqlalchemy.Insert:
    references, names = _REFERENCES[table.name], _NAMES.get(table.name, ())
    values: list[sqlalchemy.ColumnElement[object]] = []
    for column in originals.c:
        if column.name in references:
            values.append(column + copy * offsets[references[column.name]])
        elif column.name in names:
            # Within the width of the columns: a digest of 53 digits is as good as one of 64 here.
            values.append(sqlalchemy.func.substr(column, 1, 60) + sqlalchemy.literal(f"-{copy}"))
        else:
            values.append(column)
    rows = sqlalchemy.select(*values)
    if _has_identity(table.name):
        rows = rows.where(originals.c[_identity(table)] <= offsets[table.name])
    else:
        (name, referenced), *_ = references.items()
        rows = rows.where(originals.c[name] <= offsets[referenced])
    return sqlalchemy.insert(table).from_select([column.name for column in originals.c], rows)


def _move_sequence(connection: sqlalchemy.Connection, table: sqlalchemy.Table) -> None:
    """Let the next row of a PostgreSQL table have an identity that is free."""
    if connection.dialect.name == "postgresql" and _has_identity(table.name):
        name = _identity(table)
        sequence = sqlalchemy.func.pg_get_serial_sequence(table.name, name)
        connection.execute(sqlalchemy.select(sqlalchemy.func.setval(sequence, _highest(connection, table))))
