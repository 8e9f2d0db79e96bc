# Every target works from a clean checkout: the first one asked for makes .venv and installs the project into it.
# Needed on the machine: python3 (3.11 or newer, with its venv module), make, and g++ for the tests.

PYTHON ?= python3
VENV ?= .venv
# More words for a command: make test ARGS="-k plan -x". For pip: make test PIP_ARGS="--find-links wheels".
ARGS ?=
PIP_ARGS ?=
# For make gpu: where wheels are, and what such a machine lacks besides torch.
WHEELS ?= wheels
GPU_PACKAGES := diffusers torchao importlib_metadata lazy-importer

BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.stamp
# The CUDA build of torch, about 10 GB with its libraries, in an environment of its own.
CUDA_VENV ?= .venv-cuda
CUDA_PY := $(CUDA_VENV)/bin/python
CUDA_STAMP := $(CUDA_VENV)/.stamp
CUDA_TORCH := torch==2.14.1 nvidia-cuda-crt
PIP := $(PY) -m pip --no-input --disable-pip-version-check

CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
XDIST ?= $(if $(filter 1,$(CORES)),,-n 2)

# CXX is what torch builds extensions with; the built ones stay inside the checkout.
export CXX
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.cache/torch_extensions

.DEFAULT_GOAL := help
.PHONY: help install demo test test-cuda soak gpu gpu-wheels gpu-rehearsal bench lint format mutants clean distclean compiler

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo '  ARGS="..." is passed on to the command, for example: make test ARGS="-k plan -x"'

install: $(STAMP) ## make .venv with the project and all its extras

# Without a GPU the simulated accelerator of the tests stands in: bytes and images are real there, times are not.
demo: $(STAMP) ## run the demonstration
	$(BIN)/offload-plus demo --output demo-output $$($(PY) -c 'import torch; print("" if torch.accelerator.is_available() else "--device sim --import tests.simulated:register")') $(ARGS)

test: $(STAMP) compiler ## run the tests, soak tests left out
	$(PY) -m pytest $(XDIST) --durations=10 $(ARGS)

# PyTorch's CUDA backend on a stand-in for a GPU: tests/standin_cuda/README.md. It takes an hour or two.
test-cuda: $(CUDA_STAMP) ## run the tests on PyTorch's CUDA backend, no GPU needed (downloads 10 GB)
	$(CUDA_PY) -m tests.standin_cuda.proof --output docs/proofs/cuda_standin.md $(ARGS)

soak: $(STAMP) compiler ## run what takes hours: 5,000 random sequences beside a twin, 1,000 killed set-ups
	OFFLOAD_PLUS_SEQUENCES=5000 $(PY) -m pytest tests/twin -s $(ARGS)
	OFFLOAD_PLUS_EVERY_FAULT=1 $(PY) -m pytest tests/offload/failures $(ARGS)
	$(PY) -m pytest -m soak -s $(ARGS)

# On a machine with a GPU, torch and the test tools, and no network: what else is needed comes from a folder of wheels.
gpu: ## on a machine with a CUDA device: all that it can prove, in 8 minutes, on one page in gpu-output
	$(PYTHON) -m venv --system-site-packages .venv-gpu
	.venv-gpu/bin/python -m pip install --no-input --no-index --no-deps --find-links $(WHEELS) $(GPU_PACKAGES)
	PYTHONPATH=$(CURDIR) .venv-gpu/bin/python -m benchmarks.gpu_page $(ARGS)

gpu-wheels: $(STAMP) ## collect the wheels that make gpu needs, for Python 3.12
	$(PIP) download -c constraints.txt --no-deps --only-binary=:all: --python-version 3.12 -d $(WHEELS) $(GPU_PACKAGES)

gpu-rehearsal: $(STAMP) compiler ## make gpu on the simulated accelerator
	$(PY) -m benchmarks.gpu_page --device sim $(ARGS)

bench: $(STAMP) ## run the benchmarks
	$(PY) -m benchmarks $(ARGS)

lint: $(STAMP) ## ruff check, ruff format --check, mypy
	@rc=0; for check in 'ruff check .' 'ruff format --check .' mypy; do \
	  echo "$(BIN)/$$check"; $(BIN)/$$check || rc=1; done; exit $$rc

format: $(STAMP) ## let ruff fix and format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mutants: $(STAMP) compiler ## break the code on purpose and see that a test notices
	$(PY) -m tests.mutants $(ARGS)

clean: ## remove caches and everything built, .venv stays
	rm -rf .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info demo-output bench-output gpu-output
	find . -path ./$(VENV) -prune -o -path ./$(CUDA_VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv and .venv-cuda as well
	rm -rf $(VENV) $(CUDA_VENV)

compiler: $(STAMP)
	@command -v $(firstword $(CXX)) >/dev/null || { \
	  echo "error: $(firstword $(CXX)) not found: the tests build a simulated accelerator in C++."; \
	  echo "       Install g++ (Debian, Ubuntu: apt-get install g++), or name a compiler: make test CXX=clang++"; \
	  exit 1; } >&2
	@$(PY) -c 'import os, sysconfig as s; h = s.get_path("include") + "/Python.h"; os.path.exists(h) or exit(\
	  f"error: {h} not found: the tests build a C++ extension.\n       Install the Python headers (Debian, Ubuntu: apt-get install python3-dev).")'

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) not found; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or exit(\
	  f"error: $(PYTHON) is Python {v}; 3.11 or newer is needed. Name one: make PYTHON=python3.12")'
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	  echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); } || { \
	  echo "error: $(PYTHON) -m venv failed (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "installing the project and its pinned dependencies into $(VENV) (torch is large; minutes the first time)"
	$(PIP) install $(PIP_ARGS) -c constraints.txt setuptools
	$(PIP) install $(PIP_ARGS) -c constraints.txt --no-build-isolation -e '.[torchao,cli,test,dev]'
	@touch $@

# The versions of everything but torch are those of constraints.txt.
$(CUDA_STAMP): pyproject.toml constraints.txt
	@command -v $(firstword $(CXX)) >/dev/null || { echo "error: $(firstword $(CXX)) not found; the stand-in is C++" >&2; exit 1; }
	@$(CUDA_PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(CUDA_VENV)
	grep -v '^torch==' constraints.txt > $(CUDA_VENV)/constraints.txt
	$(CUDA_PY) -m pip --no-input install $(PIP_ARGS) -c $(CUDA_VENV)/constraints.txt setuptools $(CUDA_TORCH)
	$(CUDA_PY) -m pip --no-input install $(PIP_ARGS) -c $(CUDA_VENV)/constraints.txt --no-build-isolation -e '.[torchao,cli,test]'
	@touch $@
