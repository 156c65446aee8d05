# make install: everything into .venv, from the package index. make test: install and test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install check test test-fast

install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

test-fast: install
	$(BIN)/pytest -m "not ray and not slow and not gpu"

test: install
	$(BIN)/pytest -m "not slow and not gpu"
