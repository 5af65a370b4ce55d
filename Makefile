# SPDX-License-Identifier: BSD-3-Clause
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
# an active virtual environment is used; otherwise one is made here
VENV ?= $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
C_SOURCES := $(wildcard src/shmpool/core/*.h src/shmpool/os/*.h tests/c/*.c tests/c/*.h bench/c/*.c)

.PHONY: help demo test test-c test-sklearn test-gpu bench-gpu test-9p test-wine lint fmt bench soak soak-mounts wheel clean

help:  ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml setup.py $(wildcard src/shmpool/*.p[yx][xdi]) $(wildcard src/shmpool/*/*.h) | $(BIN)/python
	$(PIP) install --quiet --editable '.[server]'
	@touch $@

$(VENV)/.dev-installed: pyproject.toml setup.py $(wildcard src/shmpool/*.p[yx][xdi]) $(wildcard src/shmpool/*/*.h) | $(BIN)/python
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.demo-installed

demo: $(VENV)/.demo-installed  ## install, start a server, run a 500 MB PCA through it, print the report
	$(BIN)/gsb demo

test: $(VENV)/.dev-installed  ## every test: Python, C under sanitizers, crashes, the model checker; JOBS=2: two at a time
	$(BIN)/python -m pytest $(if $(JOBS),-n $(JOBS))

test-sklearn: $(VENV)/.dev-installed  ## scikit-learn's own tests, plain and through the bridge, compared; writes docs/scikit-learn.md
	$(BIN)/python tests/upstream/sklearn_suite.py

test-c: $(VENV)/.dev-installed  ## only the C core, plain and under the sanitizers
	$(BIN)/python -m pytest tests/c

# CUDA=12 or 13. Where CuPy and cuML are there already and no registry can be reached: GPU_SITE=folder with what is missing
# (or nothing in it); then nothing is installed, and GPU_PYTHON runs.
CUDA ?= 13
GPU_SITE ?=
GPU_PYTHON ?= $(if $(GPU_SITE),python3,$(BIN)/python)
GPU_PATH := $(if $(GPU_SITE),$(CURDIR)/src:$(CURDIR)/python:$(CURDIR)/server:$(GPU_SITE):)
GPU_NEEDS := $(if $(GPU_SITE),,$(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.gpu-installed))

$(VENV)/.gpu-installed: $(VENV)/.dev-installed
	$(PIP) install --quiet --editable '.[cuda$(CUDA)]'
	@touch $@

test-gpu: $(GPU_NEEDS)  ## on a machine with a GPU: the backends and the worker on the real device
	mkdir -p build
	GSB_TEST_GPU=1 SCIPY_ARRAY_API=1 PYTHONPATH="$(GPU_PATH)$$PYTHONPATH" $(GPU_PYTHON) -m pytest -m gpu -rs --junitxml=build/test-gpu.xml tests/device tests/gpu

bench-gpu: $(GPU_NEEDS)  ## on a machine with a GPU: measure, write docs/gpu.md
	PYTHONPATH="$(GPU_PATH)$$PYTHONPATH" $(GPU_PYTHON) -m bench.gpu

test-wine: $(VENV)/.dev-installed  ## shmpool on a Windows Python under wine, alone and beside Linux
	SHMPOOL_TEST_WINE=1 $(BIN)/python -m pytest -p no:randomly tests/wine

lint: $(VENV)/.dev-installed  ## ruff, mypy --strict, stubtest, cython-lint, clang-format, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" cython-lint --max-line-length 120 src/shmpool/_core.pyx src/shmpool/_channel.pyx src/shmpool/_native.pxd
	$(BIN)/mypy src/shmpool python/gsb server/gsb_server
	$(BIN)/python -m mypy.stubtest shmpool._core shmpool._channel --mypy-config-file pyproject.toml --allowlist tests/typing/stubtest-allowlist.txt
	$(BIN)/lint-imports

fmt: $(VENV)/.dev-installed  ## format everything
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_SOURCES)

$(VENV)/.bench-installed: $(VENV)/.dev-installed
	$(PIP) install --quiet --editable '.[bench]'
	@touch $@

bench: $(VENV)/.bench-installed  ## all benchmarks against their baselines and peers; fails if 500 MB takes 800 ms
	$(BIN)/python -m pytest --benchmark-only

test-9p: $(VENV)/.dev-installed  ## a client in a virtual machine, a drive by 9P between it and the server; 1 minute, 180 MB
	timeout 600 $(BIN)/python tests/qemu/run_9p.py

soak: $(VENV)/.dev-installed  ## 10,000 random kills
	$(BIN)/python tests/soak/soak_kills.py --kills 10000
	$(BIN)/python tests/soak/soak_channels.py --kills 100000
	$(BIN)/python tests/soak/soak_gpu.py --seconds 600

soak-mounts: $(VENV)/.dev-installed  ## 10,000 arrays each way across each mount that goes stale
	$(BIN)/python tests/soak/soak_mounts.py --transfers 10000

wheel: $(VENV)/.dev-installed  ## build the abi3 wheel into dist/
	$(PIP) wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:  ## remove what builds and tests leave
	rm -rf build dist src/shmpool/*.so src/shmpool.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
