# make demo    separate a sound from a real mixture (no PyTorch needed)
# make check   lint, types and the fast tests, in under two minutes
# make test    everything CI checks
# Choose an interpreter with PYTHON=python3.12; after changing it, run `make clean` first.

PYTHON ?= python3
SHELL := /bin/bash

DEMO := .venv
DEV := .venv-dev
LOWEST := .venv-lowest
CUDA_SITE := .cuda
CUDA_ONNXRUNTIME := onnxruntime-gpu>=1.31
CUDA_HEADERS := nvidia-cuda-runtime~=13.0
DEMO_READY := $(DEMO)/.installed
DEV_READY := $(DEV)/.installed

PACKAGES := flowsep_ref evaluation export runtime serve training
CHECKED := $(PACKAGES) benchmarks recipes tests
SPEC := setup.cfg pyproject.toml constraints.txt
# The demo installs the packages as a user does, so it installs again when any file of theirs changes.
SOURCES := $(shell find $(PACKAGES) -type f -not -path '*/__pycache__/*' -not -path '*.egg-info/*')

MIXTURE := examples/mix.wav
QUERY := dog barking
OUTPUT := examples/mix.dog-barking.wav
REST := examples/mix.rest.wav
PICTURE := examples/mix.png

.DEFAULT_GOAL := help
.PHONY: help demo check test lowest lint format clean test-cuda test-cuda-lowest gpu-report

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: $(DEMO_READY) ## separate the dog from examples/mix.wav, without PyTorch
	$(DEMO)/bin/flowsep-run $(MIXTURE) "$(QUERY)" --residual $(REST) --plot $(PICTURE) --force
	@echo "Listen in $(CURDIR):"
	@echo "  $(MIXTURE): a dog in the rain"
	@echo "  $(OUTPUT): the dog, with hardly any rain"
	@echo "  $(REST): the rain, with hardly any dog"
	@echo "  $(PICTURE): the spectrograms of all three"

lint: $(DEV_READY) ## ruff and mypy --strict
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy --strict $(CHECKED)

# UTF-8 mode, since a library that a test loads may set the C locale for its whole process
# tests/conftest.py orders the files
PYTEST := PYTHONUTF8=1 $(DEV)/bin/pytest --numprocesses logical --dist loadfile --no-loadscope-reorder

check: lint ## lint, types and the fast tests: what to run while you work
	$(PYTEST) -m "not slow"

test: lint ## lint, types and every test, a process a core
	$(PYTEST)

lowest: $(DEV_READY) ## the runtime's and the server's fast tests on the lowest versions that setup.cfg allows
	rm -rf $(LOWEST)
	$(DEV)/bin/uv venv --quiet --python $(DEV)/bin/python $(LOWEST)
	$(DEV)/bin/uv pip install --system-certs --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable \
		".[cpu,media,openvino,plot,serve]" "pytest>=8.3" "hypothesis>=6.112" "httpx>=0.27" "onnx>=1.18"
	PYTHONUTF8=1 $(LOWEST)/bin/python -m pytest tests/runtime tests/serve tests/end_to_end/test_bundled.py \
		-m "not slow" --ignore-glob="tests/serve/test_page*"

test-cuda: $(DEV_READY) ## the cuda backend on the real onnxruntime-gpu, whose CUDA is a stand-in; no GPU
	$(DEV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(CUDA_SITE)/onnxruntime-gpu '$(CUDA_ONNXRUNTIME)'
	$(DEV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(CUDA_SITE)/headers '$(CUDA_HEADERS)'
	FLOWSEP_CUDA_SITE=$(CURDIR)/$(CUDA_SITE) PYTHONUTF8=1 $(DEV)/bin/pytest tests/stand_in

test-cuda-lowest: ## the same on the lowest onnxruntime-gpu that setup.cfg allows
	$(MAKE) test-cuda CUDA_SITE=$(CUDA_SITE)-lowest CUDA_ONNXRUNTIME='onnxruntime-gpu==1.23.*' \
		CUDA_HEADERS='nvidia-cuda-runtime-cu12~=12.2'

# with whichever PyTorch and libraries this Python has: `pip install '.[tensorrt,gpu,export]'` first
gpu-report: ## on a machine with a GPU: export, build, verify, time, profile; one file to send back
	$(PYTHON) -m benchmarks.latency.gpu_report

format: $(DEV_READY) ## let ruff put the code in shape
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

clean: ## remove the environments and everything built
	rm -rf $(DEMO) $(DEV) $(LOWEST) $(CUDA_SITE) $(CUDA_SITE)-lowest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis $(OUTPUT) $(REST) $(PICTURE)

$(DEMO_READY): $(SPEC) $(SOURCES)
	$(PYTHON) -m venv $(DEMO)
	@# a leftover build folder would put deleted modules into the wheel
	rm -rf build
	$(DEMO)/bin/python -m pip install --quiet --disable-pip-version-check ".[cpu,plot]" --constraint constraints.txt
	rm -rf build
	@touch $@

$(DEV_READY): $(SPEC)
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" --constraint constraints.txt
	@touch $@
