# One word each; `make help` lists them. PYTHON names the interpreter that .venv is made from.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Processes that run tests side by side; each needs a core and some 2 GB.
WORKERS ?= 2
# Packages are installed without byte code, which the first import writes. Without it each start of a process that
# imports torch takes twice as long, and the tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE

BENCH_DATA ?= infra/local/facts/corrections.jsonl
BENCH_EDITS ?= 24
BENCH_BATCH ?= 24

# What `make train-editor` reads, where it trains, how long, and where the editor goes.
TRAIN_DATA ?= data
TRAIN_DEVICE ?= cuda
TRAIN_MINUTES ?= 6
TRAIN_OUT ?= trained

.DEFAULT_GOAL := help
.PHONY: help demo test check types rules compiled bench train-editor setup clean

help: ## list these words
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: setup ## run the main job from end to end and print what happened
	@$(BIN)/corrigenda demo

test: setup ## run every test that needs no GPU
	@$(BIN)/python -m pytest -m "not gpu" -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(TESTS)

check: setup ## ruff, mypy, import-linter, migrations and schemas held equal to the code
	@$(MAKE) --no-print-directory -j 2 types rules

types: setup
	@$(BIN)/mypy

rules: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/python -m pipeline.schemas check
	@$(BIN)/python -m infra.local.check

# What tests import is compiled where it is imported first, which two workers at once would both do.
compiled: setup
	@$(BIN)/python -m pytest --collect-only -q -p no:cacheprovider >/dev/null

bench: setup ## measure the editor on a stream of corrections
	@$(BIN)/corrigenda evaluate --data $(BENCH_DATA) --edits $(BENCH_EDITS) --batch $(BENCH_BATCH) --json bench.json

train-editor: setup ## train, measure and write the editor of the embedded base, in nine minutes on a GPU
	@$(BIN)/python -m tests.benchmarks.train_editor --data $(TRAIN_DATA) --out $(TRAIN_OUT) \
		--device $(TRAIN_DEVICE) --minutes $(TRAIN_MINUTES)

setup: $(INSTALLED) ## make .venv and install what constraints.txt names

$(INSTALLED): pyproject.toml constraints.txt infra/install.py
	@command -v $(PYTHON) >/dev/null || { echo "setup: expected Python 3.11 or newer as $(PYTHON), found none" >&2; exit 1; }
	@$(PYTHON) infra/install.py

clean: ## remove .venv, caches and the embedded stack's folder, which is stopped first
	@test ! -x $(BIN)/python || test ! -d .corrigenda || $(BIN)/python -c \
		"from pathlib import Path; from infra.local import LocalStack; LocalStack(Path('.corrigenda')).stop()"
	@rm -rf .venv .cache .corrigenda .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
