# make install: everything into .venv, from the package index. make demo, make test: install and run.
PYTHON ?= python3
BIN := .venv/bin
EVENTS ?= 40
PYTEST := $(BIN)/python tests/cpu_seconds.py $(BIN)/pytest --durations=15 --durations-min=5
PYTEST_ON_2 := OMP_NUM_THREADS=1 $(PYTEST) -n 2 --no-loadscope-reorder

.PHONY: install demo check test test-fast test-ray soak lose-head

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
	$(PYTEST_ON_2) -m "not heavy and not ray and not slow and not gpu"

test: install
	$(PYTEST_ON_2) -m "not ray and not slow and not gpu"
	$(PYTEST) -m "ray and not slow and not gpu"

test-ray: install
	$(PYTEST) -m "slow and not gpu"

soak: install
	$(BIN)/python tests/soak.py $(EVENTS)

lose-head: install
	$(BIN)/python tests/lose_head.py
