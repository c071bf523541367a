# `make demo`, `make test` and `make check` work in an empty clone: they need python3 (3.10 or newer, with venv), make and
# a C++17 compiler; everything else comes from the Python package index into .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard wrapping/* wrapping/itk/* wrapping/kernels/*)

.PHONY: help setup test check lint demo native clean

help:
	@echo "make demo    register the brain phantom: pictures and true errors in demo/"
	@echo "make test    run the whole test suite"
	@echo "make check   the linters, the import contract and the fast tests"
	@echo "make lint    ruff, mypy and the import contract"
	@echo "make setup   what the others need, into $(VENV)"
	@echo "make native  build the native ops in place, for the python of the current environment"
	@echo "make clean   remove $(VENV), build/ and demo/"

# Editable: a change to a Python file needs no new install, a change to the native code makes one.
$(VENV)/installed: $(BUILD_INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/linters: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt import-linter mypy ruff
	touch $@

setup: $(VENV)/installed

# Two at a time: most tests wait for one core. WORKERS=0 runs them in one process.
WORKERS ?= 2

test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

check: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow and not data and not interop and not gpu" $(PYTEST_ARGS)

lint: $(VENV)/linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: $(VENV)/installed
	$(BIN)/itk-nir demo --output demo

# For development: the module beside the Python sources, for whichever python comes first (PYTHON=… chooses another).
# Needs nanobind and cmake, which '.[dev]' brings.
native:
	cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	cmake --build build/native --parallel
	cmake --install build/native --prefix .

clean:
	rm -rf $(VENV) build demo
	rm -f itk_nir/_native*.so
