# `make demo` and `make test` need Python >= 3.10, git and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin
# One process per core, at most four: all tests with a Ray cluster are in one group, and run in one process. This group takes
# longest, so it comes first, and pytest-xdist must not change the order.
PYTEST := python -m pytest -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

.PHONY: install demo test test-fast test-lowest dist-test lint docs clean
install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 must hold, got " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/ray-deltastn compare configs/mnist1d_compare.yaml --methods fixed,random,hybrid --seeds 1

lint: install docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.pages --check

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint
	$(BIN)/$(PYTEST)

# The tests without a Ray cluster that take less than a few seconds each.
test-fast: install
	$(BIN)/$(PYTEST) -m "not ray and not slow"

# The fast tests with the lowest versions that pyproject.toml allows: about 6 GB. SciPy 1.10 has no wheel for Python 3.12.
test-lowest: .venv-lowest/.installed
	$(LOWEST)/$(PYTEST) -m "not ray and not slow"

.venv-lowest/.installed: pyproject.toml .ci/lowest.py
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12) and "Python 3.10 or 3.11 must hold for the lowest versions, got " + sys.version.split()[0])'
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python -m pip install --quiet --upgrade pip
	$(LOWEST)/python .ci/lowest.py > .venv-lowest/constraints.txt
	PYTHONWARNINGS='ignore:Editable installation' $(LOWEST)/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	touch $@

# The sdist and the wheel, which is built from the sdist, in an empty environment: about 6 GB and several minutes. The
# command runs in another folder, so that it finds the installed package only.
dist-test: install
	rm -rf dist .venv-dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet dist/*.whl
	sh .ci/dist.sh "$(CURDIR)/.venv-dist/bin"

clean:
	rm -rf .venv .venv-lowest .venv-dist build dist results site
