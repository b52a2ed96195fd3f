#!/bin/sh
# From nothing to a searched, validated, exported and applied schedule. Every step is a command of the README.
set -eu
rm -rf quickstart
mkdir quickstart
export SCHEDULER_SEARCH_DATABASE=sqlite:///quickstart/scheduler-search.db

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run scheduler-search launch studies/quickstart.toml
run scheduler-search launch studies/quickstart-sigmoid.toml
run scheduler-search export quickstart --out quickstart/schedules
run scheduler-search export quickstart-sigmoid --out quickstart/schedules
run scheduler-search evaluate quickstart/schedules/tiny-llava/quickstart.v1.json --split test
