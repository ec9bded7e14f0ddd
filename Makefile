# make train   install, get the data and train on CIFAR-10     (ARGS="--epochs 2" changes settings)
# make test    run the tests; those marked long are left out
# make test-faults   kill real runs, damage their files, and print the table of faults
# make test-cluster   train on several hosts, made of network namespaces on this machine; needs root
# make check   style, types and the direction of imports
# make docs    the documentation as a site, in build/docs
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=

.PHONY: train test test-faults test-cluster check docs clean
train: $(INSTALLED)
	$(BIN)/accelerate launch --config_file accelerate_config.yaml -m cifar10_accel.train --recipe auto --time-budget 10m $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long and not cluster" $(ARGS)

test-faults: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/faults tests/sweep tests/commands/test_verify.py $(ARGS)

test-cluster: $(INSTALLED)
	$(BIN)/python -m pytest tests/cluster $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(INSTALLED)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs
	@echo build/docs/index.html

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; give make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
