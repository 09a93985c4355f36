# make run: set up .venv, build, run the main job. make test: set up, run every test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out
# torch and torchvision come as a pair; a newer pair works too (the binary uses torch's stable ABI).
TORCH := torch==2.14.1 torchvision==0.29.1
SOURCES := $(wildcard csrc/*/*) CMakeLists.txt setup.py pyproject.toml
TEST_FLAGS ?=

.PHONY: run test wheel gpu-check dev format lint clean

run: $(VENV)/.built
	$(BIN)/cnnkernels bench --quick --photographs --out $(OUT)

test: $(VENV)/.built
	$(BIN)/python -m pytest $(TEST_FLAGS)

$(VENV)/.deps: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH) setuptools wheel cmake ninja pybind11
	$(BIN)/python -m pip install -q $$($(BIN)/python tools/requirements.py images energy test lint)
	touch $@

$(VENV)/.built: $(VENV)/.deps $(SOURCES)
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

# On a machine with an NVIDIA GPU, its own python3 and no network: no .venv is made.
gpu-check:
	PYTHON=$(PYTHON) tools/gpu_check.sh $(OUT)

# Build in place with whatever python is there; used while developing.
dev:
	$(PYTHON) setup.py build_ext --inplace

wheel: $(VENV)/.deps
	$(BIN)/python -m build --no-isolation --outdir dist .

lint: $(VENV)/.deps
	$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .
	git ls-files '*.cu' '*.cuh' '*.cpp' '*.h' | xargs $(BIN)/clang-format --dry-run -Werror

clean:
	rm -rf build dist *.egg-info cnnkernels/*.so
