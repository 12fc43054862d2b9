# LM-Harmony: every target works from a fresh clone. Targets that need the environment create it first.
#
#   make env            create the environment in .venv with the versions in constraints.txt
#   make demo           train and score the demo's models and build its board, without network
#   make test           run the tests and list the slowest (those of the board page need chromium: apt-get install chromium)
#   make coverage       run the tests and print the coverage (one folder: make coverage TESTS=tests/analysis)
#   make chaos          let faults happen to a small study for a minute, and compare it with one that nothing disturbed
#   make real           run the tests that need a real 135M model folder
#   make lint           check style and format with ruff
#   make types          check types with mypy
#   make docs           build the documentation as a site in build/site; a link that leads nowhere is an error
#   make check-install  install the package without development tools into a new environment and run its command
#   make images         build the Docker images without and with CUDA, run the fast demo in the first and --help in the second
#   make dist           build the wheel and the source distribution in dist/
#   make clean          remove caches and build outputs (.venv and results stay)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS ?= tests

IS_SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
# The first of the two that runs and is new enough. A python3.11 on the PATH may be a version manager's shim that fails.
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '$(IS_SUPPORTED)' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help env demo test coverage chaos real lint types docs check-install images dist clean

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

# Two test processes run on two cores. More threads in each process would only compete for the cores.
test coverage real: export TOKENIZERS_PARALLELISM = false
test coverage: export OMP_NUM_THREADS = 1
test: env
	$(BIN)/pytest $(TESTS) -m "not real" -n 2 --dist loadfile --no-loadscope-reorder --durations=20

coverage: env
	$(BIN)/pytest $(TESTS) -m "not real" -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

chaos: env
	$(BIN)/python -m tests.chaos --minutes 1 --seed 0

real: env
	$(BIN)/pytest -m real

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

# mkdocs 1.6 prints an advertisement of its successor, unless it is told not to.
docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check-install:
	rm -rf build/install && $(or $(PYTHON),python3) -m venv build/install
	build/install/bin/pip install -c constraints.txt .
	cd build/install && bin/lm-harmony --help
	cd build/install && bin/lm-harmony leaderboard --published
	cd build/install && bin/python -c "import lm_harmony; [getattr(lm_harmony, name) for name in lm_harmony.__all__]"

images:
	docker build --build-arg PIP_EXTRA_INDEX_URL -t lm-harmony .
	rm -rf build/images && mkdir -p build/images
	docker run --rm --user "$$(id -u):$$(id -g)" -v "$$PWD/build/images:/work" lm-harmony demo --fast
	test -s build/images/results/demo/board-fast.html
	docker build -f Dockerfile.cuda -t lm-harmony:cuda .
	docker run --rm lm-harmony:cuda --help

dist:
	rm -rf build/dist dist && $(or $(PYTHON),python3) -m venv build/dist
	build/dist/bin/pip install build
	build/dist/bin/python -m build

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +
