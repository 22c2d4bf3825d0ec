# `make demo` and `make test` need nothing but Python 3.11 or newer, with venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

MODEL ?= smollm2-135m
BACKEND ?= asyncio
OUT ?= demo-out
OFFICIAL ?= .venv-official

.PHONY: demo test test-fast check bench clean

demo: $(VENV)/.demo
	$(BIN)/tinker-async demo --model $(MODEL) --backend $(BACKEND) --out $(OUT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev $(OFFICIAL)/.ready
	$(BIN)/python -m benchmarks --official $(OFFICIAL)/bin/python $(ARGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[dev,judge]'
	@touch $@ $(VENV)/.demo

# The official client that the benchmarks compare with, unmodified, in its own environment.
$(OFFICIAL)/.ready: $(BIN)/python
	$(PYTHON) -m venv $(OFFICIAL)
	$(OFFICIAL)/bin/python -m pip --disable-pip-version-check install --quiet 'tinker==0.38.0'
	@touch $@

clean:
	rm -rf $(VENV) $(OFFICIAL) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
