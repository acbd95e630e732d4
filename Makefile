# Bare `make` explains itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What a user runs needs no tests, trackers or clusters.
RUNS := $(VENV)/.runs
PIP := "$(BIN)/python" -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
CONFIG ?= configs/quickstart.toml
# A worker a core, each with one thread of its own; a file's tests stay together, for they share what is slow to make.
PARALLEL := OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
# Where a machine forbids it, every process would compile all that it imports once more: ten seconds for torch alone.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install quickstart helpdesk test test-fast test-slow test-gpu test-reliability lint docs bench clean

help:  ## Show this list
	@echo "Flywheel: a data flywheel for trajectory distillation"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP)  ## Create .venv and install everything into it

$(BIN)/python:
	"$(PYTHON)" -c 'import sys; sys.exit("Flywheel needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	"$(PYTHON)" -m venv "$(VENV)"

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cookingworld,gymnasium,mcp,browser,chat,otel,lora,gguf,postgresql,s3,mlflow,wandb,ray,dev]'
	touch "$(STAMP)" "$(RUNS)"

$(RUNS): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cookingworld,chat]'
	touch "$(RUNS)"

quickstart: $(RUNS)  ## Two turns of the wheel on a real environment: minutes, on a laptop
	"$(BIN)/flywheel" run "$(CONFIG)"

helpdesk: $(RUNS)  ## An agent with tools: recorded, learned from, and answered by the student that is no worse
	"$(BIN)/python" examples/helpdesk/play.py

test: $(STAMP)  ## Lint, types and the tests, but for the slowest proofs
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	$(PARALLEL) -m "not slow"

test-fast: $(STAMP)  ## The tests that take seconds
	$(PARALLEL) -m "not slow and not minutes"

test-slow: $(STAMP)  ## The slowest proofs: kills, several processes, schedules, Ray, wheels of other environments
	"$(BIN)/python" -m pytest -m slow

test-gpu: $(STAMP)  ## What needs a GPU; skipped where there is none
	"$(BIN)/python" -m pytest -m gpu -rs

test-reliability: $(STAMP)  ## Kill -9 writers a hundred times on each backend
	FLYWHEEL_ROUNDS=100 "$(BIN)/python" -m pytest tests/test_reliability.py

lint: $(STAMP)  ## Format and fix what can be fixed
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .
	"$(BIN)/mypy"

docs: $(STAMP)  ## Write the reference pages anew from the code, and build the site
	"$(BIN)/python" docs/generate.py
	NO_MKDOCS_2_WARNING=1 "$(BIN)/mkdocs" build --quiet --site-dir build/site

bench: $(STAMP)  ## Print speed and memory figures as JSON
	"$(BIN)/python" benchmarks/startup.py
	"$(BIN)/python" benchmarks/quickstart.py

clean:  ## Remove the virtual environment and caches; data/ stays
	rm -rf "$(VENV)" .mypy_cache .pytest_cache .ruff_cache
