# Two commands on a fresh machine: `make reproduce` and `make test`. Both set up .venv first; what only
# development needs is installed by the targets that need it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# torch and DALI for CUDA 13 (NVIDIA driver 580 or newer), 12 (525 or newer), or torch without CUDA (cpu).
# Remembered in .venv; an environment variable of this name is another's. `make setup CUDA=…` chooses; otherwise
# a machine without an NVIDIA driver gets cpu.
DRIVER := $(shell command -v nvidia-smi || ls -d /proc/driver/nvidia /dev/dxg 2>/dev/null)
CUDA   := $(shell cat $(VENV)/cuda 2>/dev/null || echo $(if $(DRIVER),13,cpu))
DATA   ?= photos
OUT    ?= reproduction
ARGS   ?=

# Tests and sweeps start many processes, each of which would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: reproduce test test-gpu setup setup-dev lint format bench site wheel test-wheel lock check-lock clean
.DEFAULT_GOAL := reproduce

TORCH    := https://download.pytorch.org/whl
# Asked first: pip would wait for an index that does not answer, again for each package.
INDEX     = $$($(PYTHON) -c 'import urllib.request; urllib.request.urlopen("$(TORCH)/$(1)/torch/", timeout=10)' 2>/dev/null \
	&& echo --extra-index-url $(TORCH)/$(1) \
	|| echo "$(TORCH)/$(1) does not answer: torch comes from the indexes of pip, perhaps for CUDA 13, which is gigabytes larger" >&2)
BUILD_12  := cu126
BUILD_cpu := cpu
INDEX_12  = $(call INDEX,$(BUILD_12))
INDEX_cpu = $(call INDEX,$(BUILD_cpu))
# CUDA 12 has packages of its own for DALI and its codecs.
LOCK_13  := requirements.lock
LOCK_12  := requirements-cuda12.lock
LOCK_cpu := $(LOCK_13)
ifeq ($(filter $(CUDA),12 13 cpu),)
$(error CUDA=$(CUDA): must be 12, 13 or cpu)
endif

reproduce: setup
	$(BIN)/python -m alexnet2012.reproduce 'source="$(DATA)"' 'out="$(OUT)"' $(ARGS)

# Two test files at a time: more would compete for two cores, as most tests start processes of their own.
test: setup-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-gpu: setup-dev
	ALEXNET2012_TEST_GPU=1 $(BIN)/python -m pytest -q tests/gpu tests/nn/test_kernels.py $(ARGS)

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	for script in $(filter-out %/record.py %/arms.py %/compare.py %/page.py %/labels.py %/peers.py %/gpu_rehearsal.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

# Not --quiet: warnings that are not shown are not counted by --strict.
site: setup-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

# The wheel is built from the source distribution, which must therefore be complete.
wheel: setup
	rm -rf dist
	$(BIN)/python -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")'
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz

# A newcomer's commands, with the wheel in a new environment elsewhere. WHEEL=FILE tries another wheel.
test-wheel: $(if $(WHEEL),setup,wheel)
	PYTHON=$(PYTHON) tests/newcomer.sh $(or $(WHEEL),dist/*.whl) $(VENV)/requirements.txt $(INDEX_$(CUDA))

setup: $(VENV)/ready
setup-dev: $(VENV)/ready-dev

PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(VENV)/ready: requirements.lock requirements-cuda12.lock setup.cfg pyproject.toml setup.py $(wildcard src/alexnet2012/utils/native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	sed '/^# Development/,$$d' $(LOCK_$(CUDA)) > $(VENV)/requirements.txt
	$(PIP_INSTALL) $(INDEX_$(CUDA)) -r $(VENV)/requirements.txt
	$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	echo $(CUDA) > $(VENV)/cuda
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	sed '1,/^# Development/d' requirements.lock > $(VENV)/requirements-dev.txt
	$(PIP_INSTALL) --no-deps -r $(VENV)/requirements-dev.txt
	touch $@

# New pins from setup.cfg's lower bounds. torch's CUDA libraries are left to torch's own pins, so
# that one lock serves machines with CUDA 13 and without a GPU.
LOCK_PIP := $(VENV)-lock/bin/python -m pip --disable-pip-version-check
PINS = $(LOCK_PIP) list --format=freeze \
	| grep -viE '^(alexnet2012|pip|nvidia-(cu|nccl|nvshmem|nvtx|cusparselt|nvjitlink)[^=]*|cuda-[^=]*)==' \
	| sed 's/+[a-z0-9.]*$$//'
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(LOCK_PIP) install --quiet torch==2.13.0 wheel "setuptools>=77"
	$(LOCK_PIP) install --quiet .
	$(PINS) > $(VENV)-lock/run.txt
	$(LOCK_PIP) install --quiet ".[dev]"
	{ cat $(VENV)-lock/run.txt; echo "# Development"; $(PINS) | grep -vxFf $(VENV)-lock/run.txt; } > requirements.lock
	$(CUDA_12) > $(LOCK_12)
	rm -r $(VENV)-lock

# What running needs, with DALI for CUDA 12: the other nvidia- packages are DALI's, and pip names those it would add.
CUDA_12 = { sed '/^\# Development/,$$d; /^nvidia-/d' requirements.lock; \
	$(LOCK_PIP) install --dry-run $$(sed -n 's/^\(nvidia-dali-cuda\)130/\1120/p' requirements.lock) \
	| sed -n 's/^Would install //p' | tr ' ' '\n' | sed 's/-\([0-9][^-]*\)$$/==\1/'; }

# Whether pip resolves each lock on x86-64 and ARM with glibc 2.28, with torch for that CUDA. fast-deps, which needs a new
# pip, reads what a wheel requires without downloading it. antlr4 has no wheel anywhere, so one is built first.
PLATFORMS = $(foreach tag,$(addprefix _2_,$(shell seq 17 28)) 2014 1,--platform manylinux$(tag)_$$machine)
RESOLVE = index="$(INDEX_$(1))"; for machine in x86_64 aarch64; do \
	$(LOCK_PIP) install --use-feature=fast-deps --dry-run --ignore-installed --only-binary=:all: $(PLATFORMS) \
	  --find-links $(VENV)-lock $$index -r $(LOCK_$(1)) > $(VENV)-lock/pip.txt 2>&1 || { tail -n 20 $(VENV)-lock/pip.txt >&2; exit 1; }; \
	torch=$$(sed -n 's/^Would install .*\(torch-[0-9][^ ]*\).*/\1/p' $(VENV)-lock/pip.txt); \
	case $$torch in *$(BUILD_$(1))) echo "CUDA=$(1), $$machine: resolves, with $$torch";; \
	  *) echo "CUDA=$(1), $$machine: resolves, but with $$torch, not $(BUILD_$(1))"; wrong=1;; esac; done;
check-lock:
	@$(PYTHON) -m venv $(VENV)-lock
	@$(LOCK_PIP) install --quiet --upgrade pip
	@$(LOCK_PIP) wheel --quiet --no-deps --wheel-dir $(VENV)-lock $$(grep ^antlr4 requirements.lock)
	@$(foreach cuda,13 12 cpu,$(call RESOLVE,$(cuda))) rm -r $(VENV)-lock; exit $$wrong

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info
