# One entry for people and for CI: demo, test, check. Every target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup mosquitto demo test check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) mosquitto  ## create .venv with pinned versions, find or install mosquitto

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

mosquitto:
	@sh broker-config/install-mosquitto.sh

demo: setup  ## one federated run on this machine: make demo ARGS="--clients 8 --rounds 3"
	@$(BIN)/fedops-mqtt demo $(ARGS)

test: setup  ## everything the tests need, and the tests: make test ARGS="-k will"
	$(BIN)/python -m pytest $(ARGS)

check: setup  ## ruff and mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
