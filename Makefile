# make install: everything into .venv, from the package index. make demo, make test: install and run.
PYTHON ?= python3
BIN := .venv/bin
EVENTS ?= 40
PYTEST := $(BIN)/python tests/cpu_seconds.py $(BIN)/pytest --durations=15 --durations-min=5
LEFT_OUT := not slow and not variant and not gpu

.PHONY: install demo check test test-fast test-ray test-all fuzz soak lose-head namespaces

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

# One process each: to import torch, Ray and MLflow in a second one costs a third of test-fast.
test-fast: install
	OMP_NUM_THREADS=1 $(PYTEST) -m "not heavy and not ray and $(LEFT_OUT)"

test: install
	OMP_NUM_THREADS=1 $(PYTEST) -m "$(LEFT_OUT)"

test-ray: install
	$(PYTEST) -m "slow and not variant and not gpu"

test-all: test test-ray
	$(PYTEST) -m "variant and not gpu"
	$(MAKE) fuzz soak lose-head

fuzz: install
	TIPS_RAY_FUZZ=1000 OMP_NUM_THREADS=1 $(PYTEST) tests/data/test_fuzz_tars.py tests/data/test_fuzz_parquet.py \
		tests/data/test_fuzz_tables.py tests/data/test_tables.py

soak: install
	$(BIN)/python tests/soak.py $(EVENTS)

lose-head: install
	$(BIN)/python tests/lose_head.py

namespaces: install
	PYTHONPATH=.:tests $(BIN)/python tests/namespaces.py
