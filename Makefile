# Each target sets itself up. Given: Python >= 3.11, make and a C++17 compiler; the rest comes by pip.
#   make setup   .venv with everything in it        make demo    the whole product, into demo-out/
#   make test    the tests                          make lint    style, types, layers
#   make test-slow  those of more than ten seconds
#   make crash   long runs killed at every moment and resumed
#   make bench   the measurements under bench/      make native  the C++ library alone, in build/dev
#   make gpu     everything on the NVIDIA GPU that is here; installs nothing (docs/gpu.md)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPP := CMakeLists.txt $(shell find src -name '*.cpp' -o -name '*.hpp')

.PHONY: setup demo test test-slow crash lint bench gpu native clean
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

demo: setup
	rm -rf demo-out
	$(BIN)/unspool demo -o demo-out

# Two processes; tests of more than ten seconds apart.
test: setup
	$(BIN)/python -m pytest -m "not slow" -n 2

test-slow: setup
	$(BIN)/python -m pytest -m slow -n 2

# A run that fails or is killed at every operation on the disk, and 100 runs at random, and goes
# on: the bytes have to be those of a whole run.
crash: setup
	$(BIN)/python bench/crash.py

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Peers beside ours: make bench GGML=folder LLAMA_PYTHON=file (bench/peers/README.md)
bench: setup
	$(BIN)/python bench/encode.py
	$(BIN)/python bench/matmul.py $(if $(GGML),--ggml $(GGML))
	$(BIN)/python bench/quality.py
	$(BIN)/python bench/calibrated.py $(if $(GGML),--ggml $(GGML))
	$(BIN)/python bench/model.py $(if $(LLAMA_PYTHON),--llama-python $(LLAMA_PYTHON))

# No setup and no network: the sources, $(PYTHON) with numpy and torch, the driver. Ends by itself in
# eight minutes; `timeout` is for what hangs in the driver. make gpu GPU="--only probe"
gpu:
	@PYTHONPATH=src:bench PYTHONDONTWRITEBYTECODE=1 timeout --kill-after=5 475 \
	  $(PYTHON) -m gpu $(GPU)

# Then: UNSPOOL_NATIVE=build/dev/_native.abi3.so
native: $(VENV)/.tools
	$(BIN)/cmake -S . -B build/dev -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)
	$(BIN)/cmake --build build/dev

clean:
	rm -rf $(VENV) build dist demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache

# The build tools live in the environment, so that a changed C++ file costs a compile, no download.
$(VENV)/.tools: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"Python >= 3.11 is needed, found {sys.version.split()[0]}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt scikit-build-core cmake ninja
	touch $@

# Editable: Python files are read from src/, the library is rebuilt when C++ changes.
$(VENV)/.installed: $(VENV)/.tools pyproject.toml $(CPP)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation --editable '.[dev,plot,cuda,allocate]'
	touch $@
