# What can be done here: `make` lists it.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-stamp
DEV := $(VENV)/.dev-stamp
UV ?= $(firstword $(wildcard $(BIN)/uv) uv)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
COMPILE = $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo soak bench bench-check test clients fuzz lint types fmt requirements clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(RUNTIME) ## a session that outlives its credential, on simulated upstreams (HOLD=1 leaves it running)
	@$(BIN)/python -m broker.demo $(ARGS)

soak: $(DEV) ## faults at random for a while (ARGS="..." for its options)
	@$(BIN)/python -m broker.soak $(ARGS)

test: $(DEV) ## all tests; what was skipped is said at the end
	@$(BIN)/python -m pytest -q $(ARGS)

clients: $(DEV) ## programs that we did not write, the large ones too (Codex CLI, opencode: 800 MB, needs npm)
	@$(BIN)/python -m pytest -q tests/clients --clients $(ARGS)

fuzz: ## feed the readers of the wire with whatever comes (ARGS="--seconds 60"; PYTHON=one that has atheris)
	@$(PYTHON) tests/fuzz/fuzz_wire.py $(ARGS)

bench: $(RUNTIME) ## what relaying costs, beside HAProxy and a plain relay (ARGS="--quick"; see bench/README.md)
	@$(BIN)/python -m bench.run $(ARGS)

bench-check: $(RUNTIME) ## whether a frame or a turn takes more instructions than it did (ARGS="--write": a new baseline)
	@$(BIN)/python -m bench.check $(ARGS)

lint: $(DEV) ## style and import directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: $(DEV) ## mypy, strict
	@$(BIN)/mypy

fmt: $(DEV) ## put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The build tools are held to the versions that the tests run with, where both have them.
requirements: ## choose versions within pyproject.toml's bounds, with hashes (ARGS=--upgrade for the newest)
	@$(UV) --version >/dev/null || { echo "this needs uv: pip install uv, or make UV=/path/to/uv" >&2; exit 1; }
	@$(COMPILE) $(ARGS) pyproject.toml -o requirements/runtime.txt >/dev/null
	@$(COMPILE) $(ARGS) pyproject.toml --group test --group lint -o requirements/dev.txt >/dev/null
	@$(COMPILE) $(ARGS) requirements/clients.in -o requirements/clients.txt >/dev/null
	@$(COMPILE) $(ARGS) --group build -c requirements/dev.txt -o requirements/build.txt >/dev/null

clean: ## remove what can be made again; not data/
	@rm -rf $(VENV) broker/_frames*.so bench/.build bench/.peers tests/clients/.envs dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than 3.11; choose another: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }

TWIN := broker/_frames.c hatch_build.py

$(RUNTIME): $(BIN)/python requirements/runtime.txt requirements/build.txt pyproject.toml $(TWIN)
	@echo "installing what the broker needs"
	@$(PIP) install --require-hashes -r requirements/build.txt
	@$(PIP) install --require-hashes -r requirements/runtime.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(BIN)/python requirements/dev.txt requirements/build.txt pyproject.toml $(TWIN)
	@echo "installing what the broker and its tests need"
	@$(PIP) install --require-hashes -r requirements/build.txt
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $(RUNTIME) $@
