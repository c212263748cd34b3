# `make demo` and `make test` need Python >= 3.10, git and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
# A process of tests per core; more than four are not worth their memory, as all tests with a Ray cluster are in one. That
# group takes longest and is the first in the order of tests, which must stay as it is.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

.PHONY: install demo test test-fast lint docs clean
install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 must hold, got " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/ray-deltastn run configs/digits_hybrid.yaml

lint: install docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.pages --check

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint
	$(PYTEST)

# Without Ray clusters and without what takes more than a few seconds.
test-fast: install
	$(PYTEST) -m "not ray and not slow"

clean:
	rm -rf .venv results site
