# Every target makes .venv and installs what it needs first, from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# `constraints.txt` pins torch; without it pip would fetch the newest build with several GB of CUDA packages.

.PHONY: quickstart test test-fast chaos lint format bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.search: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --upgrade pip
	$(PIP) --editable '.[search,cluster]'
	touch $@

$(VENV)/.dev: $(VENV)/.search
	$(PIP) --group dev
	touch $@

# A file's tests stay in one process: what they set up together, they set up once. The order is that of tests/conftest.py.
ON_TWO_CORES = --numprocesses 2 --dist loadfile --no-loadscope-reorder
# Files of tests lie in memory where there is room: those of one run at a time.
ON_TWO_CORES += --override-ini tmp_path_retention_count=1
# Compiled files are kept even where the environment forbids it: each process that starts would compile them again.
test test-fast chaos: export PYTHONDONTWRITEBYTECODE =

quickstart: $(VENV)/.search
	PATH="$(CURDIR)/$(BIN):$$PATH" sh studies/quickstart.sh

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ON_TWO_CORES)

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" $(ON_TWO_CORES)

chaos: $(VENV)/.dev
	CHAOS_KILLS=200 $(BIN)/python -m pytest -s tests/integration/test_chaos.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.prefill

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) quickstart build dist *.egg-info
