# Two commands on a fresh machine: `make reproduce` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# torch and DALI for CUDA 13 (NVIDIA driver 580 or newer), 12 (525 or newer), or torch without CUDA (cpu).
# Remembered in .venv; an environment variable of this name is another's.
CUDA   := $(shell cat $(VENV)/cuda 2>/dev/null || echo 13)
DATA   ?= photos
OUT    ?= reproduction
ARGS   ?=

.PHONY: reproduce test test-gpu setup lint format bench site lock clean
.DEFAULT_GOAL := reproduce

TORCH_12  := cu126
TORCH_cpu := cpu
INDEX     := $(TORCH_$(CUDA):%=--extra-index-url https://download.pytorch.org/whl/%)
ifeq ($(filter $(CUDA),12 13 cpu),)
$(error CUDA=$(CUDA): must be 12, 13 or cpu)
endif

reproduce: setup
	$(BIN)/python -m alexnet2012.reproduce 'source="$(DATA)"' 'out="$(OUT)"' $(ARGS)

# Three test files at a time, also on two cores: most tests wait for processes that they start.
test: setup
	$(BIN)/python -m pytest -q -n 3 --dist loadfile $(ARGS)

test-gpu: setup
	ALEXNET2012_TEST_GPU=1 $(BIN)/python -m pytest -q tests/gpu tests/nn/test_kernels.py $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	for script in $(filter-out %/record.py %/arms.py %/compare.py %/page.py %/labels.py %/peers.py %/gpu_rehearsal.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict $(ARGS)

setup: $(VENV)/ready

$(VENV)/ready: requirements.lock setup.cfg pyproject.toml setup.py $(wildcard src/alexnet2012/utils/native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	sed 's/^\(nvidia-dali-cuda\)130/\1$(if $(filter 12,$(CUDA)),120,130)/' requirements.lock > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(INDEX) -r $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	echo $(CUDA) > $(VENV)/cuda
	touch $@

# New pins from setup.cfg's lower bounds. torch's CUDA libraries are left to torch's own pins, so
# that one lock serves machines with and without a GPU.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet torch==2.13.0 wheel "setuptools>=77"
	$(VENV)-lock/bin/python -m pip install --quiet ".[dev]"
	$(VENV)-lock/bin/python -m pip list --format=freeze \
		| grep -viE '^(alexnet2012|pip|nvidia-(cu|nccl|nvshmem|nvtx|cusparselt|nvjitlink)[^=]*|cuda-[^=]*)==' \
		| sed 's/+[a-z0-9.]*$$//' > requirements.lock
	rm -r $(VENV)-lock

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info
