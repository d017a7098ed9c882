# Each target sets up what it needs in .venv, from pinned versions, and does one thing.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

BENCH_BIN := .venv-bench/bin
BENCH_PIP := $(BENCH_BIN)/python -m pip --quiet --disable-pip-version-check
BENCH_PINS := -c constraints.txt -c benchmarks/constraints.txt

.PHONY: demo test check bench results site clean

demo: .venv/demo  ## train, evaluate, and write one page of figures
	$(BIN)/python examples/demo.py

test: .venv/dev  ## everything the tests need, and the tests
	$(BIN)/python -m pytest

check: .venv/dev  ## linter, formatter, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

bench: .venv-bench/ready  ## us and other libraries, side by side, into benchmarks/results/; BENCH=--quick for minutes
	$(BENCH_BIN)/python -m benchmarks.speed $(BENCH)
	$(BENCH_BIN)/python -m benchmarks.scaling $(BENCH)
	$(BENCH_BIN)/python -m benchmarks.memory $(BENCH)
	$(BENCH_BIN)/python -m benchmarks.implicit
	$(BENCH_BIN)/python -m benchmarks.control
	$(BENCH_BIN)/python -m benchmarks.report README.md

results: .venv/demo  ## rebuild the results tables from docs/results/
	$(BIN)/python -m headstart.report.tables docs/results README.md docs/results.md
	$(BIN)/python -m headstart.report.comparisons docs/results docs/comparisons.md

site: .venv/demo node_modules  ## the page that needs no server, into build/site
	$(PIP) -e '.[serve,export]'
	$(BIN)/headstart serve --static build/site --runtime node_modules/onnxruntime-web/dist

node_modules:  ## ONNX Runtime for browsers, which executes the site's graphs
	npm install --silent --no-save --no-package-lock --no-fund --no-audit onnxruntime-web@1.30.0

clean:
	rm -rf .venv .venv-bench node_modules

.venv/demo: .venv/created
	$(PIP) -e '.[report]'
	@touch $@

.venv/dev: .venv/created
	$(PIP) -e '.[dev]'
	@touch $@

# learn2learn does not build: its archive is fetched, for which its setup script needs Cython, and unpacked in part.
.venv-bench/ready: pyproject.toml constraints.txt benchmarks/constraints.txt benchmarks/unpack.py
	$(PYTHON) -m venv --clear .venv-bench
	$(BENCH_PIP) install $(BENCH_PINS) -e '.[report,rl]' torchopt higher parallel-metalearn jax optax setuptools cython
	$(BENCH_PIP) download $(BENCH_PINS) --no-deps --no-build-isolation --no-binary learn2learn -d .venv-bench learn2learn
	$(BENCH_BIN)/python -m benchmarks.unpack .venv-bench
	@touch $@

.venv/created: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Headstart needs Python 3.11 to 3.13; say which: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@
