"""All that a study decides by, as rows of its database: for comparing a disturbed run with an undisturbed one."""

from __future__ import annotations

from sqlalchemy import MetaData

from scheduler_search.storage.engine import make_engine, parse_url

Rows = list[tuple[object, ...]]

_QUERIES = {
    "trials": """
        SELECT study.name, stage.name, trial.number, trial.candidate, trial.evaluation_key, trial.state, trial.score,
               trial.difference, trial.variance, trial.objective, trial.samples
        FROM search_trials AS trial JOIN search_stages AS stage ON stage.id = trial.stage_id
        JOIN search_studies AS study ON study.id = stage.study_id
        ORDER BY study.name, stage.stage, trial.number""",
    "decisions": """
        SELECT stage.stage, stage.name, decision.candidate, decision.value, decision.score, decision.objective
        FROM search_decisions AS decision JOIN search_stages AS stage ON stage.id = decision.stage_id
        ORDER BY stage.stage""",
    "Optuna's trials": """
        SELECT study.study_name, trial.number, trial.state, parameter.param_value, value.value
        FROM trials AS trial JOIN studies AS study USING (study_id)
        JOIN trial_params AS parameter USING (trial_id) LEFT JOIN trial_values AS value USING (trial_id)
        ORDER BY study.study_name, trial.number""",
    "Optuna's attributes": """
        SELECT study.study_name, trial.number, attribute.key, attribute.value_json
        FROM trials AS trial JOIN studies AS study USING (study_id)
        JOIN trial_user_attributes AS attribute USING (trial_id)
        ORDER BY study.study_name, trial.number, attribute.key""",
    "scores": """
        SELECT evaluation.key, score.chunk, score.sample, score.score
        FROM chunk_scores AS score JOIN evaluations AS evaluation ON evaluation.id = score.evaluation_id
        ORDER BY evaluation.key, score.chunk, score.sample""",
}


def records(url: str) -> dict[str, Rows]:
    """The rows by what they are, in an order that does not depend on when they were written."""
    engine = make_engine(parse_url(url))
    try:
        with engine.connect() as connection:
            return {name: [tuple(row) for row in connection.exec_driver_sql(query)] for name, query in _QUERIES.items()}
    finally:
        engine.dispose()


def everything(url: str) -> dict[str, list[str]]:
    """All rows of all tables, those of leases and logs included."""
    engine = make_engine(parse_url(url))
    try:
        with engine.connect() as connection:
            tables = MetaData()
            tables.reflect(connection)
            return {table.name: sorted(map(repr, connection.execute(table.select()))) for table in tables.sorted_tables}
    finally:
        engine.dispose()
