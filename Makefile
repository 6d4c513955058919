# `make demo` and `make test` prepare a fresh Debian 12 machine by themselves; see sandbox/setup.sh.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
# one thing after the other, whatever -j says: two cores are soon full
.NOTPARALLEL:
.PHONY: help setup software demo lint test unit integration image chaos bench clean

BIN := .venv/bin
# options for the demo, e.g. `make demo DEMO='--fail-point 3'`; see `bbpwf sandbox demo --help`
DEMO ?=

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## everything that the rest needs: Debian packages, .venv, .software
	@sandbox/setup.sh packages accounting browser database container keycloak venv peers software

software:  ## the cluster's software environment alone
	@sandbox/setup.sh software

demo:  ## a simulation campaign through the whole platform, on this machine
	@sandbox/setup.sh packages venv software
	$(BIN)/bbpwf sandbox demo $(DEMO)

lint:  ## ruff, mypy and the floors of the house
	@sandbox/setup.sh venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/cfn-lint container/*.yaml
	$(BIN)/mypy

# Three processes, for most tests wait for something; a file's tests stay together, and with them what they share.
# Files are taken in their order: what waits longest, the integration tests, does not come last.
# What this machine cannot run (see `sandbox/setup.sh marks`) is left out and was told by the set-up.
PYTEST := $(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "$$(sandbox/setup.sh marks)"

test: setup lint  ## all checks and tests, with coverage
	@rm -f .coverage .coverage.*
	$(PYTEST) tests --cov --cov-report=term --durations=10

unit:  ## the tests that need no real processes, and those of protocols over all implementations
	@sandbox/setup.sh packages database venv
	$(PYTEST) tests/unit tests/contract

integration:  ## the tests with real processes
	@sandbox/setup.sh packages accounting browser database container keycloak venv peers software
	$(PYTEST) tests/integration

image:  ## the container image of an instance with its bill of materials, the Lambda bundle; see docs/deployment.md
	@sandbox/setup.sh container venv
	$(BIN)/python -m container.image

# how many faults, and which: `make chaos FAULTS=100 SEED=7`
FAULTS ?= 1000
SEED ?= 1

chaos:  ## break everything at random, then prove that no job was lost, doubled or left over
	@sandbox/setup.sh packages venv
	$(BIN)/python -m benchmarks.chaos --faults $(FAULTS) --seed $(SEED)

# one or more of fan_out, chain, submissions, live_jobs, service; all if empty
BENCH ?=

bench:  ## measure bbpwf beside raw Slurm; keeps the figures in benchmarks/
	@sandbox/setup.sh packages load venv
	$(BIN)/python -m benchmarks $(BENCH)

clean:  ## what tests and builds leave; neither environments nor sandboxes
	@rm -rf .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
