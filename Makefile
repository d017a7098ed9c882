# Each target sets up what it needs in .venv, from pinned versions, and does one thing.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check bench results clean

demo: .venv/demo  ## train, evaluate, and write one page of figures
	$(BIN)/python examples/demo.py

test: .venv/dev  ## everything the tests need, and the tests
	$(BIN)/python -m pytest

check: .venv/dev  ## linter, formatter, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

bench: .venv/demo  ## milliseconds per meta-iteration, into benchmarks/results/
	$(BIN)/python benchmarks/eager.py

results: .venv/demo  ## rebuild the results tables from docs/results/
	$(BIN)/python -m headstart.report.tables docs/results README.md docs/results.md

clean:
	rm -rf .venv

.venv/demo: .venv/created
	$(PIP) -e '.[report]'
	@touch $@

.venv/dev: .venv/created
	$(PIP) -e '.[dev]'
	@touch $@

.venv/created: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Headstart needs Python 3.11 to 3.13; say which: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@
