# Each target does what it needs first: on a fresh machine with python3 (3.11 or newer) and make, `make demo` is enough.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test bench fuzz torture experts format clean
.DEFAULT_GOAL := help

help:
	@echo "make setup    install weft and its tools into $(VENV)"
	@echo "make demo     merge three small experts, and ask the result what each of them could do"
	@echo "make experts  merge them with every method, and put the scores into README.md and docs/merging-works.md"
	@echo "make test     lint, check types and imports, run the tests"
	@echo "make torture  interrupt merges at every call, cut the power, fill the disk: some ten minutes"
	@echo "make bench    measure merges and plans, and put the tables into docs/benchmarks.md"
	@echo "make fuzz     look for inputs that break the parsers (Linux; SECONDS=60 a parser)"
	@echo "make format   put the sources into the project's format"
	@echo "make clean    remove the demo's merges, caches and builds ($(VENV) stays)"

setup: $(STAMP)

# One pip command, so that the constraints hold for everything that is installed.
# The link lets mypy find the package by its name, whatever this folder is called.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "weft needs Python 3.11 or newer; name one with: make PYTHON=python3.11"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/weft
	@touch $@

demo: $(STAMP)
	@rm -rf .demo
	$(BIN)/weft plan examples/experts/configs/ties.yaml .demo/ties
	$(BIN)/weft run examples/experts/configs/ties.yaml .demo/ties
	$(BIN)/python examples/experts/table.py ties moe_hidden --out .demo

experts: $(STAMP)
	$(BIN)/python examples/experts/table.py --write

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n auto --dist worksteal

# Every kill, power cut and failing call in turn, for some ten minutes; `make test` tries a few of each.
torture: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/torture.py

# Checkpoints and results take about 15 GB under $(BENCH); MERGEKIT names mergekit-yaml, to race against.
BENCH ?= .bench
MERGEKIT ?=

bench: $(STAMP)
	$(BIN)/python benchmarks/versus.py $(BENCH) $(if $(MERGEKIT),--other $(MERGEKIT)) --write docs/benchmarks.md
	$(BIN)/python benchmarks/scaling.py $(BENCH) --write docs/benchmarks.md

SECONDS ?= 60

fuzz: $(STAMP)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	$(BIN)/python tests/fuzz/run.py $(SECONDS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .demo .fuzz build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
