# `make demo` and `make test` need nothing but Python 3.11 or newer, with venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

MODEL ?= smollm2-135m
BACKEND ?= asyncio
OUT ?= demo-out
OFFICIAL ?= .venv-official

RIVALS := skyrl tuft official-0.24.1 official-0.25.0

COMPARED := test_weights_and_tokens_are_those_that_transformers_reads

COMPAT := compat-0.4.1 compat-0.16.1 compat-0.24.1 compat-0.25.0

.PHONY: demo test test-fast test-compat check bench rivals fuzz soak clean

demo: $(VENV)/.demo
	$(BIN)/tinker-async demo --model $(MODEL) --backend $(BACKEND) --out $(OUT)

# In the order of the files: with the largest ones first, the slow ones would come together at the end.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Official clients of other ages against our servers, each in its own small environment; and the
# real model's weights against transformers' own reading of its file.
test-compat: $(COMPAT:%=.venv-%/.ready)
	COMPAT_REQUIRED=1 $(BIN)/python -m pytest tests/compat tests/models/test_smollm2.py::$(COMPARED)

.venv-compat-%/.ready: benchmarks/rivals/environments.py | $(VENV)/.dev
	$(BIN)/python -m benchmarks.rivals.environments compat-$*

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# So many times the cases of `make test`, then properties with examples of their own (a failure
# prints what repeats it), then every call with every fault.
FUZZ ?= 100
FUZZ_SEED ?= $(shell date +%s)

fuzz: $(VENV)/.dev
	FUZZ_FACTOR=$(FUZZ) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest tests/fuzz -n auto
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile fuzz -n auto
	ALL_FAULTS=1 $(BIN)/python -m pytest tests/faults -n auto

# Minutes of a training program with faults and a server that restarts, then fifty kills of the
# embedded one; `make test` has small ones.
soak: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m soak $(ARGS)
	CRASH_LIVES=50 $(BIN)/python -m pytest tests/crash/test_kills.py

bench: $(VENV)/.dev $(OFFICIAL)/.ready
	-$(MAKE) -k rivals
	$(BIN)/python -m benchmarks --official $(OFFICIAL)/bin/python $(ARGS)

# Other servers of the protocol, each in its own environment with the official client of its age.
# What cannot be installed is not measured, and its rows say so.
rivals: $(RIVALS:%=.venv-%/.ready)

.venv-%/.ready: benchmarks/rivals/%.txt benchmarks/rivals/environments.py | $(BIN)/python
	$(BIN)/python -m benchmarks.rivals.environments $*

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
	rm -rf $(VENV) $(OFFICIAL) $(RIVALS:%=.venv-%) $(COMPAT:%=.venv-%) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
