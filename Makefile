# `make demo` and `make test` are all a fresh clone needs: both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
WORK ?= $(if $(MPII),work/mpii,work/demo)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint unit faults cluster-test bench clean

help:
	@echo "make demo   run the whole line on a generated data set (WORK=$(WORK); MPII=URI for a real one)"
	@echo "make test   lint, types and all tests"
	@echo "make faults what kills, cuts and poisons scoring, training and sweeps, on a real S3 server (an hour)"
	@echo "make cluster-test  two hosts in network namespaces: ray start, submitted jobs, a cut link (root; minutes)"
	@echo "make bench  prepare against Ray's read_images, side by side"
	@echo "make clean  remove .venv and work/"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: .venv/installed

demo: install
	$(BIN)/python -m jobs.demo --work-uri $(WORK) $(if $(MPII),--mpii-uri $(MPII))

test: lint unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: install
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup --durations=10

faults: install
	POSEPIPE_CEPH=1 $(BIN)/python -m pytest -m faults --durations=0 -rs -s

cluster-test: install
	$(BIN)/python -m pytest -m cluster -rs -s

bench: install
	$(BIN)/python -m benchmarks.ingest

clean:
	rm -rf .venv work
