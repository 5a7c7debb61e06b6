# make reproduce   every figure and table of preset smoke, on the embedded data
# make test        lint and the tests that are not marked slow
# make test-all    lint and all tests
# make bench       the benchmarks of results/bench, measured on this machine
# make reference   the finished run of PRESET (smoke) becomes the reference that `rr check` compares with
# The first four make their environment in .venv first. They need Python >= 3.11 and a package index.

PYTHON ?= python3
VENV := .venv
PRESET := smoke
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: reproduce reference readme test test-all lint bench lock clean
.DELETE_ON_ERROR:

reproduce: $(VENV)/.installed
	@$(BIN)/python -m rr reproduce

# git ignores data and models in the reference, so `git clean -X` leaves only the numbers, tables and figures there
reference:
	@rm -rf results/reference/$(PRESET)/runs results/reference/$(PRESET)/extractors
	@cp -r results/$(PRESET) results/reference/
	@cp -r figures/$(PRESET) figures/reference/
	@git clean -fdXq results/reference figures/reference

# the generated parts of README.md and of the other pages
readme: $(VENV)/.installed
	@$(BIN)/python workflow/readme.py

# a file of tests stays on one worker, because its tests share what they prepare
test: lint
	@$(PYTEST) -n 2 --dist loadfile -p no:benchmark -m "not slow"

test-all: lint
	@$(PYTEST) -n 2 --dist loadfile -p no:benchmark

lint: $(VENV)/.installed
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

bench: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@$(PYTEST) tests/benchmarks/bench_*.py --benchmark-columns=median,ops,rounds \
	  --benchmark-json=results/bench/benchmarks.json

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is missing or older than Python 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "installing into $(VENV), two to three minutes ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# the newest versions that pyproject.toml allows, for every platform; this needs uv (https://docs.astral.sh/uv)
lock:
	@uv pip compile --universal --extra test --no-header --no-annotate --python-version 3.11 --upgrade \
	  --quiet --output-file requirements.lock pyproject.toml
	@echo "requirements.lock is new; bring environment.yml up to date (tests/test_environment.py names the differences)"

# what git ignores: the environment, your results and figures, .ipynb files; not the photographs in restored/
clean:
	@git clean -fdXq -e '!restored/'
