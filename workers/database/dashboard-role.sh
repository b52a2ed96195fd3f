#!/bin/sh
# A role for optuna-dashboard, which has no authentication of its own: it may read every table and write none.
# PostgreSQL's image runs this once, in an empty volume.
set -eu
psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" \
    --set=password="$DASHBOARD_PASSWORD" <<'SQL'
CREATE ROLE dashboard LOGIN PASSWORD :'password';
GRANT pg_read_all_data TO dashboard;
SQL
