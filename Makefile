# make install: everything into .venv, from the package index. make demo, make test: install and run.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo check test test-fast test-ray

install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/tips-ray demo

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not ray and not slow and not gpu"

test: test-fast
	$(BIN)/pytest -m "ray and not slow and not gpu"

test-ray: install
	$(BIN)/pytest -m "slow and not gpu"
