# Needs Linux, Python 3.11 or later, git and make; everything else is brought by packages.
# `make PYTHON=python3.12 up` chooses the Python.
PYTHON ?= python3
UV_VERSION := 0.13.9

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCAL := $(BIN)/python -m local

.DEFAULT_GOAL := help
.PHONY: help up status logs down demo unit test kill-test mixed fuzz outage-test prove coverage bench check generate lock
MAKEFLAGS += --no-print-directory

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "make up SAMPLE=year sends all flights of 2013 (676,874 records) in place of some days."
	@echo "BRONZE_{METRICS,TRACES,LOGS}_EXPORTER say where telemetry goes: the files of otel-collector/exporters/, by comma."
	@echo "BRONZE_LOCAL_PORT_{NATS,S3,OTLP,PROMETHEUS,ZIPKIN,TEMPO,GRAFANA,API,CONSUMER,PUBLISHER} move the ports of \`make up\`."

up: $(READY) ## start everything in the background, send the sample, show what became of it; again: take other exporters
	@$(LOCAL) up $(if $(SAMPLE),--sample $(SAMPLE))

status: $(READY) ## what runs, and whether it works
	@$(LOCAL) status

logs: $(READY) ## follow the logs; P=consumer for one program's
	@$(LOCAL) logs $(P)

down: $(READY) ## stop what `up` started; its state stays
	@$(LOCAL) down

demo: $(READY) ## all of it once, from fresh state on free ports, with proof: .local/evidence.json
	@$(LOCAL) demo $(if $(SAMPLE),--sample $(SAMPLE))

unit: T ?= --numprocesses 2 tests/unit
unit: $(READY) ## the tests that need no server: in less than a minute
	$(BIN)/python -m pytest $(T)

# most of a test's time is waiting for servers, so three run side by side
test: T ?= --numprocesses 3 --dist loadfile --no-loadscope-reorder
test: check ## check, then all tests: in 6 minutes on 2 idle cores; T="..." for pytest's arguments
	$(BIN)/python -m pytest $(T)

kill-test: SEED ?= random
kill-test: ROUNDS ?= 10
kill-test: $(READY) ## kill every process at every step; SEED=... repeats a run, ROUNDS=... makes it longer
	BRONZE_KILL_SEED=$(SEED) BRONZE_KILL_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest -s tests/delivery/test_kill.py $(T)

mixed: S ?= 10
mixed: $(READY) ## another version's API and consumer beside this one's, under load; BASE=commit, S=... seconds a phase
	@test -n "$(BASE)" || { echo "error: BASE=commit says which version runs beside this one" >&2; exit 1; }
	@$(BIN)/python -m tests.compat.mixed $(BASE) --seconds $(S) $(if $(SEED),--seed $(SEED))

fuzz: N ?= 500
fuzz: SEED ?= 1
fuzz: $(READY) ## ask all that the OpenAPI document offers, rightly and wrongly; N=... requests each, SEED=... others
	BRONZE_FUZZ_EXAMPLES=$(N) BRONZE_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest tests/system/test_fuzz.py $(T)

outage-test: S ?= 180
outage-test: $(READY) ## stop the telemetry pipeline's parts under load, for three minutes each; S=... seconds
	BRONZE_OUTAGE_S=$(S) $(BIN)/python -m pytest -s tests/pipeline/test_outages.py $(T)

prove: SEED ?= 1
prove: HOURS ?= 1
prove: $(READY) ## kill test, change, model, fuzz and outages for hours; again: goes on; docs/proof.md has what they found
	@$(BIN)/python -m tests.prove --seed $(SEED) --hours $(HOURS)

coverage: T ?= --numprocesses 2 tests/unit tests/contract tests/delivery/test_model.py
coverage: $(READY) ## what the tests reach of the service; fails where the pure modules are below their floor
	$(BIN)/python -m pytest --cov --cov-report= $(T)
	$(BIN)/coverage report
	$(BIN)/coverage report --rcfile=tests/pure.coveragerc

bench: $(READY) ## how fast, how large, at what cost: .local/bench.json; B=bulk,small,telemetry for some, B=--help
	@$(BIN)/python -m benchmarks $(B)

check: $(READY) ## format, lint, types, configurations
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	@$(LOCAL) check

generate: $(READY) ## what is generated: the rules of Prometheus, the dashboards, docs/telemetry.md, docs/settings.md
	$(BIN)/python -m prometheus.rules
	$(BIN)/python -m grafana
	$(BIN)/python -m docs.telemetry
	$(BIN)/python -m docs.settings

lock: $(READY) ## pin the dependencies of pyproject.toml; U=--upgrade takes newer ones
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --all-extras $(U) pyproject.toml --output-file requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or later is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
			"make PYTHON=... chooses another" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu:" \
			"apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "installing the pinned packages into $(VENV)"
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
