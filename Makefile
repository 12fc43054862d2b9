# LM-Harmony: every target works from a fresh clone; each one makes the environment first if it is not there.
#
#   make env    the environment in .venv, at the versions in constraints.txt
#   make demo   the whole path, from models to board, on what ships with the package
#   make test   the tests (those of the page need chromium: apt-get install chromium)
#   make real   the tests that need a real 135M model folder
#   make lint   ruff and mypy
#   make clean  remove caches and build outputs (.venv and results stay)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

IS_SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
# The first of the two that runs and is new enough: a python3.11 on the PATH may be a shim with nothing behind it.
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '$(IS_SUPPORTED)' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help env demo test real lint clean

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(or $(PYTHON),python3) -c '$(IS_SUPPORTED)' 2>/dev/null || \
		{ echo "LM-Harmony needs Python 3.11 or newer; $(or $(PYTHON),python3) is missing or older. Install one, or name it: make env PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c '$(IS_SUPPORTED)' || \
		{ echo "The Python in $(VENV) is older than 3.11. Remove the folder $(VENV), then run make env again" >&2; exit 1; }
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	@touch $@

demo: env
	$(BIN)/lm-harmony demo

# Two processes share two cores: more threads in each would only wait for one another.
test real: export TOKENIZERS_PARALLELISM = false
test: export OMP_NUM_THREADS = 1
test: env
	$(BIN)/pytest -m "not real" -n 2 --dist loadfile

real: env
	$(BIN)/pytest -m real

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +
