# EvenFlow. `make demo` on a fresh machine is all a new user needs; every target sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
REAL   ?= $(HOME)/.cache/evenflow/real-demo
PYTEST := $(BIN)/python -m pytest
LOCKED := --extra test --extra dev --extra cluster --extra mcbench --extra train --extra gguf --extra postgres --extra otel --extra remote
# torch decides between CPU and CUDA, so it and what only its CUDA build wants are installed before the locked packages.
OF_TORCH := torch cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
    nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
    nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

.PHONY: setup demo demo-real serve test test-all test-vllm test-clients test-ray test-remote test-otel test-console console test-hostile soak peers gpu check docs reference picture papers lock sbom wheel format clean help
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

demo: $(STAMP)  ## one base model, 1,006 adapters, one greedy and three quiet clients: fcfs against fair (two minutes)
	@$(BIN)/evenflow demo --report demo-report.html

demo-real: $(STAMP)  ## the same with a real language model of 135 M parameters and three adapters trained here (first time: 15 minutes, 400 MB)
	@PYTHONPATH=tools $(BIN)/python -m real_model $(REAL)
	@$(BIN)/evenflow demo --stage $(REAL)/stage.json --num-adapters 200 --greedy 16 --report demo-real-report.html

serve: $(STAMP)  ## the embedded model on 127.0.0.1:8000
	@$(BIN)/evenflow serve --demo

test: $(STAMP)  ## the default test suite (below five minutes on two cores)
	@$(PYTEST) -n 2 --dist loadfile

test-all: $(STAMP)  ## the default suite and the slow tests, with coverage and its floor
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -m "not gpu"
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

test-hostile: $(STAMP)  ## hostile folders, killed and stopped processes, two servers on one cache: all slow tests of tests/hostile
	@$(PYTEST) -m "slow or not slow" tests/hostile

soak: $(STAMP)  ## a server among strangers and faults, every answer compared (SOAK_MINUTES=30, HARDWARE=name of this machine)
	@PYTHONPATH=tests/hostile $(BIN)/python tests/hostile/soak.py --minutes $(or $(SOAK_MINUTES),30) \
	    --json $(if $(HARDWARE),benchmarks/results/soak--$(HARDWARE).json,soak.json)

test-clients: $(STAMP)  ## clients of Python and Node against a running server, in environments of their own (first time: minutes and 1 GB)
	@$(PYTHON) tests/clients/environment.py
	@EVENFLOW_PYTHON=$(abspath $(BIN)/python) $(HOME)/.cache/evenflow/env-clients/bin/python -m pytest -q -p no:cacheprovider -c /dev/null --rootdir . --noconftest tests/clients/test_clients.py

console:  ## build the console's assets from console/ into the package (needs npm; 10 seconds, 60 MB)
	@cd console && npm ci --silent --no-audit --no-fund && npm run --silent types && node build.mjs

test-console: $(STAMP)  ## the console in Chromium, against running servers (apt-get install chromium; 4 minutes, 255 MB)
	@test -x $(HOME)/.cache/evenflow/env-console/bin/python || $(PYTHON) -m venv $(HOME)/.cache/evenflow/env-console
	@$(HOME)/.cache/evenflow/env-console/bin/python -m pip install --quiet 'playwright>=1.49' 'pytest>=8' httpx
	@EVENFLOW_PYTHON=$(abspath $(BIN)/python) $(HOME)/.cache/evenflow/env-console/bin/python -m pytest -q -p no:cacheprovider -c /dev/null --rootdir . --noconftest tests/console/test_browser.py

test-remote: $(STAMP)  ## adapters at s3://, accounts in PostgreSQL (the machine's: apt-get install postgresql), in an environment of their own (a minute, 165 MB)
	@$(PYTHON) tests/remote/environment.py
	@PYTHONPATH=src $(HOME)/.cache/evenflow/env-remote/bin/python -m pytest -q -p no:cacheprovider -c /dev/null --rootdir . --noconftest tests/remote

peers: $(STAMP)  ## environments of llama.cpp, OpenVINO and vLLM's CPU build for `evenflow bench compare` (PEERS="openvino llama.cpp vllm")
	@$(BIN)/python -m evenflow.bench.peers.environments $(PEERS)

test-otel: $(STAMP)  ## traces against a collector, with OpenTelemetry's SDK, in an environment over the project's own (a minute, 20 MB)
	@$(PYTHON) tests/otel/environment.py $(abspath $(BIN)/python)
	@PYTHONPATH=src $(HOME)/.cache/evenflow/env-otel/bin/python -m pytest -q -p no:cacheprovider -c /dev/null --rootdir . --noconftest tests/otel

test-vllm:  ## fairness inside vLLM, in an environment of its own that is built on first use (CPU build, 8 minutes, 4.1 GB)
	@$(PYTHON) tests/vllm/environment.py
	@$(HOME)/.cache/evenflow/env-vllm/bin/python -m pytest -p no:cacheprovider tests/vllm

test-ray: $(STAMP)  ## several engines on a local Ray cluster, killed and replaced, in an environment over the project's own (8 minutes, 370 MB)
	@$(PYTHON) tests/on_ray/environment.py $(abspath $(BIN)/python)
	@$(HOME)/.cache/evenflow/env-ray/bin/python -m pytest -p no:cacheprovider tests/on_ray

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
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(VENV)/site
	@$(BIN)/mypy
	@$(BIN)/mypy --no-warn-unused-ignores benchmarks/recipes   # apart: some are called like modules of tests and tools

docs: $(STAMP)  ## the manual on 127.0.0.1:8001, built again when a page changes
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

reference: $(STAMP)  ## write the generated pages of the manual from the code
	@PYTHONPATH=tools $(BIN)/python -m reference

picture: $(STAMP)  ## run the demo and show it in the README (HARDWARE=name of this machine)
	@$(BIN)/evenflow demo --report demo-report.html | tee benchmarks/results/demo--$(or $(HARDWARE),epyc-2-cores).txt
	@PYTHONPATH=tools $(BIN)/python -m reference.picture demo-report.html benchmarks/results/demo--$(or $(HARDWARE),epyc-2-cores).txt

papers: $(STAMP)  ## the tables and figures of the three papers into ./papers; begins nothing after an hour, the same command continues
	@$(BIN)/python benchmarks/papers.py --out papers

lock: $(STAMP)  ## write requirements.lock: every package that is installed, with the hashes of its files
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[release]'
	@$(BIN)/uv pip compile pyproject.toml $(LOCKED) -c constraints.txt --universal --python-version 3.11 --generate-hashes \
	    --no-header $(addprefix --no-emit-package ,$(OF_TORCH)) --output-file requirements.lock --quiet

sbom: $(STAMP)  ## write dist/sbom.cdx.json, the bill of materials, and the manual's page of licences
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[release]'
	@mkdir -p dist
	@$(BIN)/cyclonedx-py requirements requirements.lock --output-file dist/sbom.cdx.json
	@PYTHONPATH=tools $(BIN)/python -m reference.licences

wheel:  ## build dist/*.whl and try it: a clean environment, the locked packages, and a short demo
	@tools/checks/try_wheel.sh $(PYTHON)

format: $(STAMP)  ## rewrite the sources in the house's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
