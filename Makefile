# make reproduce   every figure and table of preset smoke, on the embedded data
# make test        lint and tests
# make reference   the finished run of PRESET (smoke) becomes the reference that `rr check` compares with
# The first two make their own environment in .venv first; they need Python >= 3.11, make and a package index.

PYTHON ?= python3
VENV := .venv
PRESET := smoke
BIN := $(VENV)/bin

.PHONY: reproduce reference readme test lint lock clean
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

test: lint
	@echo "tests ..."
	@$(BIN)/python -m pytest

lint: $(VENV)/.installed
	@echo "lint ..."
	@$(BIN)/ruff check --quiet .

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is missing or older than Python 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "installing into $(VENV), two to three minutes ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# the newest versions that pyproject.toml allows, for every platform; needs uv (https://docs.astral.sh/uv)
lock:
	@uv pip compile --universal --extra test --no-header --no-annotate --python-version 3.11 --upgrade \
	  --quiet --output-file requirements.lock pyproject.toml
	@echo "requirements.lock is new: bring environment.yml up to it (make test says where)"

# what git ignores: the environment, your results and figures, .ipynb files; not the photographs in restored/
clean:
	@git clean -fdXq -e '!restored/'
