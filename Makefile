# Two commands matter: `make demo` and `make test`. Both make their own environment in .venv from nothing but Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt
SCENARIO ?= scenarios/quickstart.yaml

.PHONY: demo test lint fast-test benchmark variations accuracy precision-variations rlhf-variations checkpoint-variations federated-variations golden fit clean

demo: $(VENV)/.real calibration/devices/this_machine.yaml  ## predict a training plan on this machine, run it, compare
	$(BIN)/windtunnel compare $(SCENARIO)

test: $(VENV)/.dev calibration/devices/this_machine.yaml  ## the whole suite
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --ignore tests/benchmarks --durations 15
	$(BIN)/python -m pytest tests/benchmarks

fast-test: $(VENV)/.dev  ## what takes seconds
	$(BIN)/python -m pytest -m "not slow" -q

lint: $(VENV)/.dev  ## format, style, types, import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(VENV)/.dev  ## speed of the engine beside plain SimPy
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only --benchmark-columns=min,median,rounds

variations: $(VENV)/.real calibration/devices/this_machine.yaml  ## predicted and measured iteration time, variation by variation
	$(BIN)/python -m real.variations

precision-variations: $(VENV)/.real calibration/devices/this_machine.yaml  ## the same for plans of mixed precision
	$(BIN)/python -m real.precision.variations

rlhf-variations: $(VENV)/.real calibration/devices/this_machine.yaml  ## the same for plans of RLHF
	$(BIN)/python -m real.rlhf.variations

checkpoint-variations: $(VENV)/.real calibration/devices/this_machine.yaml  ## the same for saves and loads of checkpoints
	$(BIN)/python -m real.checkpoint.variations

federated-variations: $(VENV)/.dev calibration/devices/this_machine.yaml  ## the same for rounds of federated learning
	$(BIN)/python -m real.federated.variations

accuracy: $(VENV)/.real  ## accuracy of small networks trained in several precisions
	$(BIN)/python -m real.precision.accuracy

golden: $(VENV)/.dev  ## write the expected reports anew; read the difference before committing it
	$(BIN)/python -m tests.golden.update

fit: $(VENV)/.real  ## fitted tables from the measurements in costmodels/data; then the scoreboard of them
	$(BIN)/python -m simcore.fit
	$(BIN)/windtunnel validate --all

calibration/devices/this_machine.yaml: | $(VENV)/.real
	$(BIN)/windtunnel calibrate --out calibration

$(VENV)/.real: pyproject.toml .ci/constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[real]'
	touch $@

$(VENV)/.dev: pyproject.toml .ci/constraints.txt | $(VENV)/bin/python $(VENV)/.real
	$(PIP) --editable '.[real,federated,s3,sweep,notebooks,dev]'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) calibration out build
