# One command list. `make run` shows Hauberk at work, `make test` proves it; both install what they need.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
export PYTHONSAFEPATH = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Byte code is kept, as where Hauberk is installed: a start without it compiles 300 modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-dev run test test-vm test-compose test-kubernetes lint format fuzz bench soak docs lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.run: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: expected Python 3.11 or newer on PATH, found none; install python3.11 and python3.11-venv" >&2; exit 1; }
	@deploy/packages.sh run
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq --no-install-recommends $(PYTHON)-venv >/dev/null; } || { echo "make: expected the venv module in $(PYTHON); install the package $(PYTHON)-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup: installing the locked packages into $(VENV)"
	@$(BIN)/python -m pip install -q --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	@echo "setup: installing the locked development packages"
	@$(BIN)/python -m pip install -q --require-hashes -r requirements-dev.lock
	@touch $@

setup: $(VENV)/.run ## make .venv with the `hauberk` command in it

setup-dev: $(VENV)/.dev ## the same with what tests, linters and benchmarks need

run: setup ## start `hauberk up` with the example policies; Ctrl-C ends it
	@if why=$$($(BIN)/hauberk probe --quiet 2>&1); then \
	    exec $(BIN)/hauberk up --config examples/demo/settings.toml -f examples/policies/host-audit-shadow.yaml -f examples/demo/container-demo.yaml; \
	else \
	    echo "run: this node cannot be watched ($$why), so a recording is shown"; \
	    exec $(BIN)/hauberk up --replay examples/recordings/host.hbrk -f examples/policies/host-audit-shadow.yaml; \
	fi

test: setup-dev ## install what the tests need and run all of them, on WORKERS (3) processes
	@deploy/packages.sh test
	@$(BIN)/python tests/kafka/kafka_jars.py
	@$(BIN)/python -m pytest -n $(or $(WORKERS),3) --dist loadgroup $(PYTEST)

test-vm: setup-dev ## all kernel suites in Debian's kernels 6.1 and 6.12 under qemu
	@deploy/packages.sh test
	@HAUBERK_TEST_VM=all $(BIN)/python -m pytest tests/vm $(PYTEST)

test-compose: setup-dev ## both compose stacks built, started, tried and taken down in a Docker engine of their own; as root
	@deploy/packages.sh test
	@HAUBERK_TEST_COMPOSE=1 $(BIN)/python -m pytest tests/deploy/test_stacks.py -s $(PYTEST)

test-kubernetes: setup-dev ## build an API server of Kubernetes, helm and an engine for network policies once (20 minutes of processor time), and run the tests that need them
	@deploy/packages.sh test
	@$(BIN)/python tests/cluster/api_server.py
	@$(BIN)/python tests/cluster/helm.py
	@$(BIN)/python tests/cluster/policy_engine.py
	@$(BIN)/python -m pytest -m kubernetes $(PYTEST)

lint: setup-dev ## ruff, mypy, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: setup-dev ## ruff's formatter and safe fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

fuzz: setup-dev ## mutated inputs through every door; FUZZ="--minutes 60 --seed 2"
	@$(BIN)/python tests/fuzz/fuzz.py $(FUZZ)

bench: setup-dev ## measure; a table, and build/bench.json
	@$(BIN)/python benchmarks/run.py $(BENCH)

soak: setup-dev ## `up` under floods for MINUTES (20), its rules probed each 10 ms
	@$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),20)

docs: setup-dev ## write the generated pages again
	@$(BIN)/python docs/generate.py

lock: setup-dev ## resolve the lock files again
	@$(BIN)/python -m pip install -q uv
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --group build pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --group build --group dev pyproject.toml -o requirements-dev.lock

clean: ## remove what make made
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache $(VENV)
