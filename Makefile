# Two commands do everything on a fresh machine with Python 3.11 or newer: `make bench` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Processes that share the tests; those marked alone (of time, of threads) follow in one process, with nothing beside it.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest
# Only their files: collecting all takes as long as many a test.
ALONE := $(PYTEST) $(shell grep -rl --include='test_*.py' 'mark\.alone' tests)
# Threads of OpenMP that wait by spinning would rob the process beside them.
SHARED := OMP_WAIT_POLICY=PASSIVE $(PYTEST) -n $(WORKERS) --dist worksteal

.PHONY: bench test quick lint format clean
.DEFAULT_GOAL := bench

# The core, the rivals, photographs and PyTorch (the CPU build where the package index offers one under this version).
.venv/bench: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "perwatt needs Python 3.11 or newer, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[bench,train]'
	touch $@

.venv/test: .venv/bench
	$(BIN)/python -m pip install --quiet --editable '.[bench,serve,train,dev]'
	touch $@

bench: .venv/bench  ## the main job: every engine on this machine, one honest table
	$(BIN)/perwatt bench alexnet googlenet --profile quick

test: .venv/test lint  ## everything that gates a change
	$(SHARED) -m 'not alone'
	$(ALONE) -m alone

quick: .venv/test  ## the tests under two seconds each
	$(SHARED) -q -m 'not slow and not alone'
	$(ALONE) -q -m 'alone and not slow'

lint: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
