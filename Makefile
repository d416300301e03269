# Needs Linux, Python 3.11 or later, git and make; everything else comes from packages.
# `make PYTHON=python3.12 up` chooses the Python.
PYTHON ?= python3
UV_VERSION := 0.13.9
ATHERIS_VERSION := 3.0.0

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
QUIET = $(shell test -t 2 || echo --quiet)  # in a terminal, uv shows a progress bar
LOCAL := $(BIN)/python -m local
# settings that `up` and `demo` take as variables of make, too
CHOSEN = $(if $(NATS),BRONZE_LOCAL_NATS=$(NATS)) $(if $(FLEET),BRONZE_LOCAL_FLEET=$(FLEET)) $(if $(WORKERS),BRONZE_WORKERS=$(WORKERS))

.DEFAULT_GOAL := help
.PHONY: help up status logs down demo unit test kill-test mixed fuzz fuzz-intake outage-test attack prove truth drill incidents restore-test soak coverage bench first-record secrets check check-types check-configurations generate lock sbom audit pin-images
MAKEFLAGS += --no-print-directory

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "make up SAMPLE=year sends all flights of 2013 (687,074 records) instead of a few days."
	@echo "BRONZE_{METRICS,TRACES,LOGS}_EXPORTER choose the destinations of telemetry: files of otel-collector/exporters/, separated by commas."
	@echo "BRONZE_LOCAL_PORT_{NATS,S3,OTLP,PROMETHEUS,ZIPKIN,TEMPO,GRAFANA,API,CONSUMER,PUBLISHER,CANARY,TABLE,NOTIFY,WORKERS,RETAIN} change the ports of \`make up\`; NATS is the first of 6 ports, S3 of 10, OTLP of 6, TEMPO of 3, WORKERS of 16."

up: $(READY) ## start everything in the background, send the sample, show the result; if it runs: take changed settings; FLEET=off: without simulated data, WORKERS=N: processes of API and consumer, NATS=3: three queue servers
	@$(CHOSEN) $(LOCAL) up $(if $(SAMPLE),--sample $(SAMPLE))

status: $(READY) ## show each program and whether it works
	@$(LOCAL) status || test $$? = 3  # that nothing runs is an answer and not a failure of make

logs: $(READY) ## follow the logs; P=consumer: of one program only
	@$(LOCAL) logs $(P)

down: $(READY) ## stop everything that `up` started; the state is kept
	@$(LOCAL) down

demo: $(READY) ## run everything once, with fresh state on free ports; writes the evidence to .local/evidence.json; FLEET, WORKERS and NATS as for up
	@$(CHOSEN) $(LOCAL) demo $(if $(SAMPLE),--sample $(SAMPLE))

unit: T ?= --numprocesses 2 tests/unit
unit: $(READY) ## run the tests that need no server; two minutes
	$(BIN)/python -m pytest $(T)

# tests mostly wait for servers, so three run in parallel
test: T ?= --numprocesses 3 --dist loadfile --no-loadscope-reorder
test: check ## run check, then all tests; half an hour on 2 cores; T="...": pytest's arguments
	$(BIN)/python -m pytest $(T)

kill-test: SEED ?= random
kill-test: ROUNDS ?= 10
kill-test: $(READY) ## kill every process at every step; SEED=...: repeat a test, ROUNDS=...: test longer
	BRONZE_KILL_SEED=$(SEED) BRONZE_KILL_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest -s tests/delivery/test_kill.py $(T)

mixed: S ?= 10
mixed: $(READY) ## run API and consumer of another version next to this one, under load; BASE=commit, S=...: seconds per phase
	@test -n "$(BASE)" || { echo "error: set BASE=commit to the version that should run next to this one" >&2; exit 1; }
	@$(BIN)/python -m tests.compat.mixed $(BASE) --seconds $(S) $(if $(SEED),--seed $(SEED))

fuzz: N ?= 500
fuzz: SEED ?= 1
fuzz: $(READY) ## send valid and invalid requests to every operation of the OpenAPI document; N=...: requests each, SEED=...: others
	BRONZE_FUZZ_EXAMPLES=$(N) BRONZE_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest tests/system/test_fuzz.py $(T)

fuzz-intake: S ?= 3600
fuzz-intake: $(READY) ## give damaged bodies of each format to intake, decoders and columnar reader, under atheris, for S=... seconds
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --only-binary :all: --require-hashes --requirement requirements-fuzz.lock || { \
		echo "error: atheris has no wheel for $$($(BIN)/python --version), or packages cannot be reached;" \
			"choose Python 3.11 to 3.13 with make PYTHON=..." >&2; exit 1; }
	@$(BIN)/python -m tests.fuzz --seconds $(S) $(if $(ONLY),--only $(ONLY))

attack: $(READY) ## send what once stopped the API, measure what it costs, and what it costs others; ONLY=..., S=...: seconds of the last part; FUZZ=100000 SEED=1: damaged requests instead
	@$(BIN)/python -m tests.attack $(if $(ONLY),--only "$(ONLY)") $(if $(S),--seconds $(S)) $(if $(BRONZE),--bronze $(BRONZE)) $(if $(FUZZ),--fuzz $(FUZZ)) $(if $(SEED),--seed $(SEED))

outage-test: S ?= 180
outage-test: $(READY) ## stop each part of the telemetry pipeline under load, for three minutes each; S=...: seconds
	BRONZE_OUTAGE_S=$(S) $(BIN)/python -m pytest -s tests/pipeline/test_outages.py $(T)

prove: SEED ?= 1
prove: HOURS ?= 1
prove: $(READY) ## run the long random tests (SUITES=cluster: some) for HOURS=..., after those already done for SEED=...; results are in docs/proof.md
	@$(BIN)/python -m tests.prove --seed $(SEED) --hours $(HOURS) $(SUITES)

drill: PARALLEL ?= 2
drill: $(READY) ## break one thing at a time in a whole system, and check alerts, runbook and panels; C=poison: one case, C=--list
	@$(BIN)/python -m tests.drill --parallel $(PARALLEL) $(C)

incidents: PARALLEL ?= 2
incidents: $(READY) ## cause incidents in a whole system, and check what the tiles show; CASE=bucket-away: one, CASE=--list
	@$(BIN)/python -m tests.incidents --parallel $(PARALLEL) $(CASE)

truth: SEED ?= 1
truth: HOURS ?= 1
truth: $(READY) ## compare all numbers with bucket and sender, with faults, for HOURS=... or S=... seconds; results are in docs/truth.md
	@$(BIN)/python -m tests.truth --seed $(SEED) $(if $(S),--seconds $(S),--hours $(HOURS)) $(if $(NOTE),--note "$(NOTE)")

restore-test: N ?= 2000
restore-test: $(READY) ## fill a bucket with N=... objects, throw away everything else, and time each step of the restore
	@$(BIN)/python -m tests.restore --objects $(N)

soak: SEED ?= 1
soak: H ?= 2
soak: $(READY) ## run a system under half of its load, with faults, for H=... hours: does anything grow, is anything lost; RATE=...: submissions/s, FAULT_S=...: seconds between faults, DOCS=1: write docs/soak.md also after less than an hour
	@$(BIN)/python -m tests.soak --seed $(SEED) --hours $(H) $(if $(RATE),--rate $(RATE)) $(if $(FAULT_S),--fault-s $(FAULT_S)) $(if $(DOCS),--docs) $(if $(NOTE),--note "$(NOTE)")

coverage: T ?= --numprocesses 2 tests/unit tests/contract tests/delivery/test_model.py
coverage: $(READY) ## measure the test coverage of the service; fails if the pure modules are below their minimum
	$(BIN)/python -m pytest --cov --cov-report= $(T)
	$(BIN)/coverage report
	$(BIN)/coverage report --rcfile=tests/pure.coveragerc

bench: $(READY) ## measure speed, sizes and costs; writes .local/bench.json; B=bulk,small,telemetry: only these, B=--help
	@$(BIN)/python -m benchmarks $(B)

first-record: $(READY) ## measure the time from a clone to the first stored record, and to all of the evidence, on empty caches
	@$(BIN)/python -m benchmarks.first_record

secrets: ## add random secrets for compose to .env; those that it has are kept
	@$(PYTHON) -m local.secret_files

check: $(READY) ## check format, lint, types and configurations
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	@$(MAKE) --jobs 2 --output-sync=target check-types check-configurations

check-types: $(READY)
	$(BIN)/mypy

check-configurations: $(READY)
	@$(LOCAL) check

generate: $(READY) ## write the generated files: Prometheus rules, dashboards, docs/telemetry.md, docs/settings.md, tables of docs/kubernetes.md and docs/sizing.md
	$(BIN)/python -m prometheus.rules
	$(BIN)/python -m grafana
	$(BIN)/python -m docs.telemetry
	$(BIN)/python -m docs.settings
	$(BIN)/python -m docs.kubernetes
	$(BIN)/python -m docs.sizing

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock: $(READY) ## pin the dependencies of pyproject.toml, uv, and the Go modules of what is built; U=--upgrade: newer versions
	$(COMPILE) --all-extras $(U) pyproject.toml --output-file requirements.lock
	@$(LOCAL) modules
	echo uv==$(UV_VERSION) | $(COMPILE) --no-annotate - --output-file requirements-uv.lock
	echo matplotlib | $(COMPILE) --no-annotate $(U) - --output-file requirements-plots.lock
	echo atheris==$(ATHERIS_VERSION) | $(COMPILE) --no-annotate - --output-file requirements-fuzz.lock

sbom: $(READY) ## write all components with their licences to .local/sbom/ (CycloneDX); fails on AGPL and the like
	@$(LOCAL) sbom

audit: $(READY) ## look up known vulnerabilities of packages and programs; fails if one could not be looked up
	@$(LOCAL) audit

pin-images: $(READY) ## pin the images of compose.yaml and the Dockerfile by digest; needs Docker and the internet
	@$(LOCAL) images

$(READY): requirements-uv.lock requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or later is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
			"choose another with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "error: $(PYTHON) cannot create virtual environments; on Debian and Ubuntu, install it with" \
			"apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV): 1.8 GB, once per version"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements-uv.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync $(QUIET) --require-hashes --compile-bytecode requirements.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
