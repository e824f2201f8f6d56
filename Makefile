# make repro   create the environment and run the whole pipeline (dvc repro), also after a kill
# make test    create the environment and run the tests; make test-all also runs the slow ones
# make tables  run the paper's five tables at demo size into docs/tables, also after a kill
# make up      start Prefect here: server, work pools, deployments, workers; make down ends them
# make check   lint, format and types, as CI does
#
# CPU-only machine: make repro TORCH=cpu   (takes the CPU build of torch, some 5 GB less)

PYTHON ?= python3
TORCH ?= default
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
# Where an image sets it, as many do, every process would compile the sources of torch anew.
unexport PYTHONDONTWRITEBYTECODE

ifneq ($(TORCH),default)
torch_backend := --torch-backend=$(TORCH)
endif

.PHONY: setup repro test test-all check tables up down clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv -c constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(torch_backend) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pipeline.plots
	touch $@

repro: setup
	python -m pipeline.recovery
	dvc repro

test: setup
	pytest -n auto --dist loadgroup

# With those that start whole pipelines and kill them.
test-all: setup
	pytest -n auto --dist loadgroup -m ''

check: setup
	ruff check
	ruff format --check
	mypy

# All five tables on the demo with a short schedule, see docs/tables.md.
tables: setup
	python -m pipeline.recovery
	dvc repro shard
	python -m pipeline.benchmark --dataset demo -S iterations=30 -S validate_every=30 \
	    -S batch_size=4 --out docs/tables

up: setup
	python -m pipeline.operate up

down:
	python -m pipeline.operate down

clean:
	rm -rf .venv build *.egg-info
