# Everything runs in its own .venv; `make demo` needs no torch, `make test` does.
PYTHON ?= python3
N      ?= 20
VENV   ?= .venv
BIN    := $(VENV)/bin
CODE   := sdk edge_server firmware_tools models

.PHONY: demo test lint types unit board board-fleet board-power soak-update bench bench-draft bench-verify clean

demo: $(VENV)/.base
	$(BIN)/multispin demo

test: lint types unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy --strict $(CODE)

# Two at a time, file by file; then what measures time, by itself.
unit: $(VENV)/.test
	$(BIN)/pytest -m "not board and not gpu and not alone" -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest -m "alone and not board and not gpu"

# The emulated arm64 boards. They need root and what .ci/run installs. `make -j2 board` runs both at
# the same time, from one kit.
KIT    ?= $(abspath build/board)
board: board-fleet board-power

board-fleet board-power: board-%: $(VENV)/.test
	MULTISPIN_BOARD_KIT=$(KIT) $(BIN)/pytest -m board --durations=5 tests/board/test_board_$*.py

soak-update: $(VENV)/.test
	MULTISPIN_POWER_CUTS=$(N) $(BIN)/pytest -m board tests/board/test_board_power.py

bench: $(VENV)/.base
	$(BIN)/python -m benchmarks.spine

bench-draft: $(VENV)/.test
	$(BIN)/python -m benchmarks.draft

bench-verify: $(VENV)/.test
	$(BIN)/python -m benchmarks.verify
	$(BIN)/python -m benchmarks.verify_large

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.base: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[broker]'
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/python -m pip install --quiet 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --editable '.[broker,dev,export,firmware,plot,serial,torch,torchao]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
