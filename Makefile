# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet -c constraints.txt -e

.PHONY: help demo serve test check format loadtest dashboards

help:
	@echo "make demo     start the server, send one real input to every model, print the answers"
	@echo "make serve    keep the shipped models served on ports 8000, 8001 and 8002"
	@echo "make test     run the tests"
	@echo "make loadtest MODEL=digits    measure a shipped model under load, write a report"
	@echo "make check    lint, formatting, types and import contracts"
	@echo "make format   put the code into its format"
	@echo "make dashboards  write deploy/grafana/dashboards anew from their code"

demo: .venv/serve
	$(BIN)/python scripts/demo.py

serve: .venv/serve
	$(BIN)/slipway serve --model-repository model_repo

# A file of tests on each processor, with one thread of torch; then those that must be alone.
test: export OMP_NUM_THREADS = 1
test: .venv/develop .venv/browser
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
	    -m 'not alone'; together=$$?; \
	$(BIN)/pytest -m alone $$(grep -rl --include='*.py' mark.alone tests) && exit $$together

# ARGS are options of loadtests/run.py, such as ARGS='--front v2_grpc --baseline earlier.json'.
loadtest: .venv/loadtest
	$(BIN)/python loadtests/run.py $(if $(MODEL),--model $(MODEL)) $(ARGS)

check: .venv/develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: .venv/develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dashboards: .venv/develop
	$(BIN)/python -m deploy.grafana.build

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/serve: .venv/bin/pip pyproject.toml constraints.txt
	@echo "Installing what serving needs into .venv ..."
	$(INSTALL) '.[cpu,client,audio,text]'
	@touch $@

.venv/loadtest: .venv/bin/pip pyproject.toml constraints.txt
	@echo "Installing what load tests need into .venv ..."
	$(INSTALL) '.[cpu,loadtest]'
	@touch $@

.venv/develop: .venv/bin/pip pyproject.toml constraints.txt scripts/prometheus
	@echo "Installing everything, torch included, into .venv ..."
	$(INSTALL) '.[cpu,train,dev]'
	scripts/prometheus
	@touch $@

.venv/browser: .venv/bin/pip scripts/chromium
	scripts/chromium
	@touch $@
