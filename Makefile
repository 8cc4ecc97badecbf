# EvenFlow. `make demo` on a fresh machine is all a new user needs; every target sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: setup demo serve test test-all soak gpu check docs format clean help
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv with the project, its tests' needs and its linters

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "EvenFlow needs Python 3.11 or newer; this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (torch first, so that its build is the one that is kept) ..."
	@$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## one base model, 1,006 adapters, one greedy and three quiet clients: fcfs against vtc (two minutes)
	@$(BIN)/evenflow demo --report demo-report.html

serve: $(STAMP)  ## the embedded model on 127.0.0.1:8000
	@$(BIN)/evenflow serve --demo

test: $(STAMP)  ## the default test suite (below five minutes on two cores)
	@$(PYTEST) -n 2 --dist loadfile

test-all: $(STAMP)  ## the default suite and the slow tests, with coverage and its floor
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -m "not gpu"
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

soak: $(STAMP)  ## hostile folders, killed and stopped processes, two servers on one cache: all slow tests of tests/hostile
	@$(PYTEST) -m "slow or not slow" tests/hostile

gpu:  ## on a GPU machine, with $(PYTHON) as it is: GPU tests, then the LoRA benchmark (HARDWARE=name)
	@TRITON_INTERPRET=0 PYTHONPATH=src $(PYTHON) -m pytest -m gpu tests/contracts tests/serving/runner/test_forward.py tests/serving/backends tests/e2e/test_triton_engine.py
	@TRITON_INTERPRET=0 PYTHONPATH=src $(PYTHON) benchmarks/recipes/gpu_lora.py --hardware $(or $(HARDWARE),$(error give HARDWARE=name of this GPU))

check: $(STAMP)  ## format, lint, sizes, spelling, dead code, import contracts, the site, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/python tools/checks/tree.py
	@git ls-files -z | xargs -0 $(BIN)/codespell
	@$(BIN)/python tools/checks/dead_code.py
	@$(BIN)/lint-imports
	@$(BIN)/mkdocs build --strict --quiet --site-dir $(VENV)/site
	@$(BIN)/mypy

docs: $(STAMP)  ## the manual on 127.0.0.1:8001, built again when a page changes
	@$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

format: $(STAMP)  ## rewrite the sources in the house's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
