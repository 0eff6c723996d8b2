# On a new machine, two commands are enough: `make memory` (the main job) and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
RES    ?= 256
RECORDS ?= results
BENCH  ?= runs/bench
# CSV files of your own pairs, which `quality` and `ablations` use instead of the synthetic tasks.
MANIFEST ?=
OWN    := $(foreach file,$(MANIFEST),--manifest $(file))

.DEFAULT_GOAL := help
.PHONY: help setup memory quality ablations figures claims test test-fast lint docs bench wheel clean gpu

help:           ## List the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# The stamp is written last, so that an interrupted set-up is repeated.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) ## Make the virtual environment (other targets do this on first use)

memory: $(READY) ## The main job: peak memory of every method at RES (256), table and figure under runs/memory
	$(BIN)/ppdm-bench memory --res $(RES) --checkpointing none,block --out runs/memory

quality: $(READY) ## Quality of PPDM and full 3-D on one task or on MANIFEST=pairs.csv, the quick profile, under runs/quality
	$(BIN)/ppdm-bench quality --quick $(OWN) --out runs/quality

figures: $(READY) ## Every figure, table and caption of a paper from records (RECORDS=results; your own: runs), and an HTML report
	$(BIN)/ppdm-bench figures $(RECORDS) --html --out $(RECORDS)/figures

claims: $(READY) ## Compare each claim of the paper's abstract with records (RECORDS=results), into CLAIMS.md there
	$(BIN)/ppdm-bench claims $(RECORDS) --out $(RECORDS)

ablations: $(READY) ## Vary puzzle factor, loss and bridge (also on MANIFEST=pairs.csv), under runs/ablations; with a GPU, the full profile
	$(BIN)/ppdm-bench ablate $(OWN) --out runs/ablations

# This target skips the set-up, which needs a network: any Python with the packages in pyproject.toml is enough.
gpu:            ## Everything that needs a GPU, in pieces of ten minutes (MINUTES=10 stops in time), under results/gpu
	PYTHONPATH=.:baselines:benchmarks $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) -m ppdm_bench gpu \
	  $(if $(MINUTES),--minutes $(MINUTES))

test: $(READY)  ## Run the tests
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: $(READY) ## The quick tests, of every package: what to run while working
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

lint: $(READY)  ## Style, types, import direction, licences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.:baselines:benchmarks $(BIN)/lint-imports
	$(BIN)/python benchmarks/harness/licences.py --check

docs: $(READY)  ## The documentation as a site, build/site/index.html; warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -c docs -b html . build/site
	@echo '<meta http-equiv="refresh" content="0; url=docs/index.html">' > build/site/index.html

bench: $(READY) ## Micro-benchmarks under BENCH (runs/bench), and their changes since those in results/bench
	mkdir -p runs/bench
	$(BIN)/python -m pytest benchmarks/micro --benchmark-only --benchmark-json=runs/bench/raw.json -p no:xdist -q
	$(BIN)/python -m ppdm_bench.report.tables.micro runs/bench/raw.json --saved results/bench/bench.json --out $(BENCH)

wheel: $(READY) ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:          ## Remove the environment, caches and builds; records under results/ stay
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
