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
INDEX_12 := --extra-index-url $(TORCH)/cu126
# Asked first: pip would wait for an index that does not answer, again for each package.
ASK_CPU  := $(PYTHON) -c 'import urllib.request; urllib.request.urlopen("$(TORCH)/cpu/torch/", timeout=10)'
NO_CPU   := $(TORCH)/cpu does not answer: torch comes from the indexes of pip, perhaps with CUDA (4 GB)
INDEX_cpu = $$($(ASK_CPU) 2>/dev/null && echo --extra-index-url $(TORCH)/cpu || echo "$(NO_CPU)" >&2)
ifeq ($(filter $(CUDA),12 13 cpu),)
$(error CUDA=$(CUDA): must be 12, 13 or cpu)
endif

reproduce: setup
	$(BIN)/python -m alexnet2012.reproduce 'source="$(DATA)"' 'out="$(OUT)"' $(ARGS)

# Three test files at a time, also on two cores: most tests wait for processes that they start.
test: setup-dev
	$(BIN)/python -m pytest -q -n 3 --dist loadfile $(ARGS)

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

# What running needs; DALI for CUDA 12 is a package of another name.
LOCK_13  := sed '/^\# Development/,$$d'
LOCK_12  := sed 's/^\(nvidia-dali-cuda\)130/\1120/; /^\# Development/,$$d'
LOCK_cpu := $(LOCK_13)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(VENV)/ready: requirements.lock setup.cfg pyproject.toml setup.py $(wildcard src/alexnet2012/utils/native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(LOCK_$(CUDA)) requirements.lock > $(VENV)/requirements.txt
	$(PIP_INSTALL) $(INDEX_$(CUDA)) -r $(VENV)/requirements.txt
	$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	echo $(CUDA) > $(VENV)/cuda
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	sed '1,/^# Development/d' requirements.lock > $(VENV)/requirements-dev.txt
	$(PIP_INSTALL) --no-deps -r $(VENV)/requirements-dev.txt
	touch $@

# New pins from setup.cfg's lower bounds. torch's CUDA libraries are left to torch's own pins, so
# that one lock serves machines with and without a GPU.
PINS = $(VENV)-lock/bin/python -m pip list --format=freeze \
	| grep -viE '^(alexnet2012|pip|nvidia-(cu|nccl|nvshmem|nvtx|cusparselt|nvjitlink)[^=]*|cuda-[^=]*)==' \
	| sed 's/+[a-z0-9.]*$$//'
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet torch==2.13.0 wheel "setuptools>=77"
	$(VENV)-lock/bin/python -m pip install --quiet .
	$(PINS) > $(VENV)-lock/run.txt
	$(VENV)-lock/bin/python -m pip install --quiet ".[dev]"
	{ cat $(VENV)-lock/run.txt; echo "# Development"; $(PINS) | grep -vxFf $(VENV)-lock/run.txt; } > requirements.lock
	rm -r $(VENV)-lock

# Whether every pin has a wheel: for CUDA 13 and 12, on x86-64 and ARM. antlr4 has none anywhere.
PLATFORMS = $(foreach tag,_2_28 _2_27 _2_24 _2_17 2014 1,--platform manylinux$(tag)_$(1))
check-lock: setup
	@$(foreach cuda,13 12,$(foreach machine,x86_64 aarch64,\
	  $(LOCK_$(cuda)) requirements.lock | grep -v ^antlr4 > $(VENV)/checked.txt && $(BIN)/python -m pip install --quiet --dry-run --ignore-installed --target $(VENV)/none \
	    --no-deps --only-binary=:all: $(call PLATFORMS,$(machine)) -r $(VENV)/checked.txt \
	    && echo "CUDA $(cuda), $(machine): every pin has a wheel" &&)) rm $(VENV)/checked.txt

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info
