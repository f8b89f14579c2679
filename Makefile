# Every target sets up what it needs: a virtual environment in .venv from requirements.lock.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
DATA := build/volumes/data
READY := .venv/.ready
JOBS ?= 2

.PHONY: help
help: ## Say what there is
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*## "} {printf "  make %-12s %s\n", $$1, $$2}'

$(READY): requirements.lock pyproject.toml
	@echo "Setting up .venv (once, a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(READY)

.PHONY: setup
setup: $(READY) ## Set up the virtual environment

.PHONY: demo
demo: $(READY) ## Train a small image classifier in two processes and show where all of it is
	$(BIN)/python examples/make_digits.py $(DATA)/digits
	$(BIN)/finetune run -f examples/digits.yaml --volumes build/volumes --out runs/digits

.PHONY: test
test: $(READY) ## Run the checks and the tests (JOBS=N test files at a time, 2 unless said)
	$(MAKE) --no-print-directory verify
	$(BIN)/pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder

.PHONY: verify
verify: $(READY) ## Check format, types, import boundaries and generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m finetune_api.generate --check

.PHONY: generate
generate: $(READY) ## Generate CRDs, the chart's copy, reference and schemas from the API's models
	$(BIN)/python -m finetune_api.generate

.PHONY: format
format: $(READY) ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: campaign
campaign: $(READY) ## Run the long recovery campaigns (kills, damage) in full
	$(BIN)/pytest -m campaign -s

.PHONY: e2e
e2e: $(READY) ## Run jobs on a real node, with the real images (root, 30 GB of disk, half an hour)
	$(BIN)/pytest -m node

.PHONY: cluster-up
cluster-up: $(READY) ## Start a Kubernetes cluster here (KWOK=N simulated nodes, NODE=1 a real one)
	@$(BIN)/python tests/cluster up $(if $(KWOK),--simulated $(KWOK)) $(if $(NODE),--node)

.PHONY: cluster-down
cluster-down: $(READY) ## End that cluster and remove all of it
	@$(BIN)/python tests/cluster down

.PHONY: bench
bench: $(READY) ## Measure every figure that the README quotes (four to five hours on 2 quiet cores)
	$(BIN)/python benchmarks/run_all.py

.PHONY: lock
lock: $(READY) ## Resolve requirements.lock anew
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --all-extras --upgrade pyproject.toml \
	  --no-header --no-emit-index-url --output-file requirements.lock

.PHONY: hooks
hooks: $(READY) ## Install the pre-commit hooks
	$(BIN)/pre-commit install

.PHONY: clean
clean: ## Remove what was made here, runs and virtual environment included
	rm -rf .venv build runs dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
