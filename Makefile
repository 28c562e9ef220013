# Each target does its own set-up. `make` alone prints this list.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
export RAY_USAGE_STATS_ENABLED := 0

help:  ## print this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/ready  ## make .venv with the locked dependencies

$(VENV)/ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) 2>/dev/null || { \
		echo "this Python has no venv module; installing it"; \
		SUDO=$$(test $$(id -u) = 0 || echo sudo); \
		$$SUDO apt-get update -q && $$SUDO apt-get install -q -y python3-venv && $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

demo: setup  ## a service on this machine, real work, its leader killed half way: nothing is lost
	$(BIN)/jobsvc demo

# Debian packages that tests use; without them, and where they cannot be installed, those tests are skipped.
packages:
	@for package in chromium prometheus curl jq; do command -v $$package >/dev/null || missing="$$missing $$package"; done; \
	test -z "$$missing" || { test "$$(id -u)" = 0 && apt-get update -q && \
		apt-get install -q -y --no-install-recommends $$missing; } || echo "without$$missing: tests are skipped"

# These wait most of the time: for leases, for machines. So two files run side by side, in the order in which they are
# named, the longest first. Not three: Ray gives up a node that takes 30 s to start, and starts it again.
SLOW_TESTS := -q -n 2 --dist loadfile --no-loadscope-reorder --durations=20

test: setup lint packages  ## everything that CI runs: unit, simulation, cluster, chaos, page, notebooks, EC2
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests -m "not cluster and not chaos and not ec2"
	$(BIN)/python -m pytest $(SLOW_TESTS) -m "cluster or ec2" tests/ec2 tests/cluster tests/browser tests/notebooks

test-long: setup  ## ten times as many simulated lives as in `make test` (about half an hour)
	$(BIN)/python -m pytest -q -n 2 --long -m lives tests/simulation tests/unit/test_queue_model.py

test-ec2: setup  ## real `ray up` against EC2 played on this machine; as root, skipped where it cannot run
	$(BIN)/python -m pytest $(SLOW_TESTS) tests/ec2

test-fast: setup  ## unit tests and house rules
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit tests/test_house_rules.py

lint: setup  ## ruff and mypy
	$(BIN)/ruff check jobsvc tests benchmarks
	$(BIN)/ruff format --check jobsvc tests benchmarks
	$(BIN)/mypy

notebooks: setup  ## run the notebooks and write their outputs anew
	$(BIN)/python -m tests.notebooks.runner

bench: setup  ## the figures of the README, on this machine (about twenty minutes)
	$(BIN)/python -m benchmarks

bench-scaling: setup  ## how one leader scales: against queued jobs and against workers (about ten minutes)
	mkdir -p .bench
	$(BIN)/python -m benchmarks.scaling --json .bench/scaling.jsonl --report .bench/scaling.md --picture docs/pictures/scaling.svg

bench-compare: setup  ## jobsvc and other job queues on this machine: table and picture (about 45 minutes)
	$(BIN)/python -m benchmarks.compare --picture docs/pictures/compare.svg

lock:  ## resolve requirements.lock again (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --extra test \
		--no-emit-index-url --no-annotate --no-header -q pyproject.toml -o requirements.lock

.PHONY: help setup packages demo test test-long test-ec2 test-fast lint notebooks bench bench-compare bench-scaling lock
