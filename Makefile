# `make help` lists every target.

SHELL  := bash
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python

# The options of each target.
RUN_TARGETS   := baseline ensemble prepare audit features embeddings heads cnn generalise report
$(foreach target,$(RUN_TARGETS),$(eval OF_$(target) := CONFIG PRESET DATA RUN SET MISSING STRICT REBUILD))
OF_data       := DATASET DATA MIRROR
OF_weights    := BACKBONE
OF_compare    := RUNS OUT
OF_predict    := BUNDLE IN OUT SLIDES EXPLAIN PREVALENCE MODEL POINT
OF_heatmap    := BUNDLE SLIDE OUT MPP PATCH_MPP STRIDE MODEL POINT
OF_slide      := OUT
OF_clean-runs := CONFIRM
OF_lock       := UPGRADE
OPTIONS := $(sort $(foreach target,$(RUN_TARGETS) data weights compare predict heatmap slide clean-runs lock,$(OF_$(target))))
# The options of the targets that make was asked for. `make help` takes all of them.
OWN     := $(if $(filter-out help,$(MAKECMDGOALS)),$(sort $(foreach target,$(MAKECMDGOALS),$(OF_$(target)))),$(OPTIONS))
# Options of several words.
LISTS   := SET RUNS EXPLAIN

define NEWLINE


endef
QUOTED = '$(subst $(NEWLINE),'$$'\n'',$(subst ','\'',$1))'

# A mistyped option must not pass unnoticed: without CONFIG, for instance, a run uses the phantom.
WRONG := $(firstword $(filter-out $(OWN) PYTHON PY SHELL,$(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))))
ifneq ($(WRONG),)
  NEAREST := import difflib, sys; print(*(f" Did you mean {name}=?" for name in difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], 1)))
  $(error make $(or $(MAKECMDGOALS),help) has no option $(WRONG)=.$(shell $(call QUOTED,$(value PYTHON)) -c '$(NEAREST)' $(call QUOTED,$(WRONG)) $(OWN)) \
      Its options: $(or $(OWN),none))
endif

# Options are text: make must not expand what they contain, and the shell gets every word in quotes. So $(DATA) has quotes below.
$(foreach name,PYTHON PY $(filter-out $(LISTS),$(OPTIONS)),\
    $(eval override $(name) := $$(if $$(value $(name)),$$(call QUOTED,$$(value $(name))))))
$(foreach name,$(LISTS),$(eval override $(name) := $$(foreach word,$$(value $(name)),$$(call QUOTED,$$(word)))))
unexport PYTHON PY $(OPTIONS)

# Python versions that the pinned requirements support. They are checked first, because pip would fail halfway.
CHECK_PYTHON = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PIP_INSTALL  = $(PY) -m pip install --quiet --disable-pip-version-check --no-compile --only-binary :all:
# A separate step, because pip cannot check the hash of a folder. The requirements, including setuptools, are installed before.
SELF_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
# Predicting needs few packages. Where everything is installed, that is kept up to date instead.
PREDICTING   = $(or $(wildcard $(VENV)/.user),$(VENV)/.predict)
# One file for all Python versions. A package whose newest version needs a newer Python has one pin for each, with markers.
COMPILE = $(PY) -m uv pip compile --quiet --universal --python-version 3.11 --fork-strategy requires-python --generate-hashes \
          --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

# Left out of requirements-gpu.txt: xgboost replaces the first, and the second would overwrite PyTorch's NCCL.
NOT_ON_GPUS = xgboost-cpu nvidia-nccl-cu12

# STRICT=0 is off.
SWITCHED = $(if $(filter-out '0' 'no' 'off' 'false',$1),$2)
SETTINGS = $(if $(CONFIG),--config $(CONFIG)) $(if $(PRESET),--preset $(PRESET)) $(if $(DATA),--data $(DATA)) $(if $(RUN),--run $(RUN)) $(foreach s,$(SET),--set $(s)) \
           $(if $(MISSING),--missing $(MISSING)) $(call SWITCHED,$(STRICT),--strict) $(call SWITCHED,$(REBUILD),--rebuild)

.PHONY: help data weights baseline ensemble audit prepare features embeddings heads cnn generalise report compare predict heatmap slide test torture mutants lint bench docs lock clean clean-runs
.DEFAULT_GOAL := help

help:  ## list every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  CONFIG=kaggle               a shipped configuration or a TOML file (default: phantom)"
	@echo "  PRESET=fast                 fast (a first number in minutes), default, or best (slow: half an hour for 3,000 patches)"
	@echo "  DATA=folder                 folder of the data set"
	@echo "  DATASET=pcam                make data: pcam (MIRROR=url), kaggle, or a zip or tar file to unpack"
	@echo "  BACKBONE=uni                make weights: a network in docs/backbones.md"
	@echo "  RUN=name                    write results to runs/<name>/ (default: the configuration's name)"
	@echo "  SET='key=value …'           change settings (no spaces in values), e.g. SET='seed=1 split.folds=4'"
	@echo "  MISSING=skip STRICT=1       skip ids without an image; stop at an unreadable patch"
	@echo "  SLIDES=csv EXPLAIN=id       make predict: slides of the patches (id,slide); explain single patches"
	@echo "  MODEL= POINT= PREVALENCE=   make predict, heatmap: another model (fast: cheapest near the best) or operating point; predict: share of positives"
	@echo "  SLIDE=x.svs MPP= PATCH_MPP= make heatmap: a whole slide; µm per pixel of the slide and of the patches, if unknown"
	@echo "  STRIDE=16                   make heatmap: distance between patches, in patch pixels (default: 32)"
	@echo "  RUNS='a b …' OUT=folder     make compare: names of finished runs; output folder (default: runs/compare-a-b-…/)"
	@echo "  REBUILD=1                   replace results that were made with another configuration"
	@echo "  CONFIRM=yes                 make clean-runs: remove runs/ without asking"

data: $(VENV)/.user  ## download DATASET=pcam|kaggle (or unpack an archive) into DATA=folder
	@$(PY) -m histoblend.pipelines data $(if $(DATA),--data $(DATA)) $(if $(MIRROR),--mirror $(MIRROR)) -- $(or $(DATASET),'')

weights: $(VENV)/.user  ## download the published weights of BACKBONE=name (docs/backbones.md); HF_TOKEN for gated ones
	@$(PY) -m histoblend.pipelines weights -- $(or $(BACKBONE),'')

baseline: $(VENV)/.user  ## steps 1 to 4 and 7: models without fine-tuning, and the report
	@$(PY) -m histoblend.pipelines baseline $(SETTINGS)

ensemble: $(VENV)/.user  ## steps 1 to 7: also a fine-tuned network (5) and the ensemble (6), evaluated with nested folds
	@$(PY) -m histoblend.pipelines ensemble $(SETTINGS)

$(filter-out baseline ensemble,$(RUN_TARGETS)): $(VENV)/.user
	@$(PY) -m histoblend.pipelines $@ $(SETTINGS)

prepare:     ## step 1: decode, audit and split the patches by slide
audit:       ## what the audit of step 1 did with duplicate, mislabelled, blank, blurred and pen-marked patches
features:    ## step 2: handcrafted colour, texture and nuclei features
embeddings:  ## step 3: pretrained network embeddings
heads:       ## step 4: logistic and XGBoost heads
cnn:         ## step 5: a fine-tuned network
generalise:  ## what the columns know of slides, and what more slides or more patches of them would bring: the baseline and learning curves (SET=learning.network=true: also the network's)
report:      ## step 7: ladder, importances and report.html

compare: $(VENV)/.user  ## compare finished runs on one page: RUNS="a b"; paired if they share patches
	@$(PY) -m histoblend.pipelines compare $(if $(OUT),--out $(OUT)) -- $(RUNS)

predict: $(PREDICTING)  ## predict new patches: BUNDLE=runs/<name>/bundle IN=folder OUT=predictions.csv
	@$(PY) -m histoblend.pipelines predict $(if $(BUNDLE),--bundle $(BUNDLE)) $(if $(IN),--in $(IN)) $(if $(OUT),--out $(OUT)) \
	    $(if $(SLIDES),--slides $(SLIDES)) \
	    $(foreach id,$(EXPLAIN),--explain $(id)) $(if $(PREVALENCE),--prevalence $(PREVALENCE)) \
	    $(if $(MODEL),--model $(MODEL)) $(if $(POINT),--point $(POINT))

heatmap: $(PREDICTING)  ## heat map of a whole slide: BUNDLE=runs/<name>/bundle SLIDE=x.svs OUT=folder (all have defaults)
	@$(PY) -m histoblend.pipelines heatmap $(if $(BUNDLE),--bundle $(BUNDLE)) $(if $(SLIDE),--slide $(SLIDE)) $(if $(OUT),--out $(OUT)) \
	    $(if $(MPP),--mpp $(MPP)) $(if $(PATCH_MPP),--patch-mpp $(PATCH_MPP)) $(if $(STRIDE),--stride $(STRIDE)) \
	    $(if $(MODEL),--model $(MODEL)) $(if $(POINT),--point $(POINT))

slide: $(PREDICTING)  ## draw a synthetic whole slide with a planted tumour: OUT=phantom.tif
	@$(PY) -m histoblend.pipelines slide $(if $(OUT),--out $(OUT))

# One thread per process: otherwise two test processes with two threads each slow each other down on two cores.
test: $(VENV)/.dev  ## run the whole test suite
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# `make test` skips tests marked `length` and tries each fault a few times. With HISTOBLEND_TORTURE set, all run, and faults are recorded.
torture: $(VENV)/.dev  ## long tests, most with injected faults: kills, full disks, bad files; writes docs/reliability.md
	@rm -f .torture.jsonl
	@HISTOBLEND_TORTURE="$$PWD/.torture.jsonl" $(PY) -m pytest -m "torture or length"
	@$(PY) -m tests.torture.table .torture.jsonl docs/reliability.md

mutants: $(VENV)/.dev  ## mutation testing: which small changes to the code does no test notice? writes docs/mutants.md
	@$(PY) -m pip install --quiet --disable-pip-version-check cosmic-ray==8.7.0  # not pinned like the rest: one of its libraries has no wheel
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PY) -m tests.mutants

lint: $(VENV)/.dev  ## check formatting, lint, types and the direction of imports
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports

bench: $(VENV)/.dev  ## run every benchmark: check the result, then print the speed relative to a simple version
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(PY) -m benchmarks.$$(basename $$file .py) || exit 1; done

docs: $(VENV)/.user  ## write docs/features.md and docs/backbones.md from the code's tables
	@$(PY) -m histoblend.features.handcrafted.catalogue docs/features.md
	@$(PY) -m histoblend.features.networks.backbones docs/backbones.md

lock: $(VENV)/.dev  ## compile requirements*.in into fully pinned, hashed requirements*.txt; UPGRADE=1 takes the newest versions
	@$(PY) -m pip install --quiet uv
	@$(COMPILE) requirements-predict.in requirements.in -o requirements.txt
	@$(COMPILE) requirements-predict.in -c requirements.txt -o requirements-predict.txt
	@$(COMPILE) requirements-predict.in requirements.in requirements-gpu.in -c requirements.txt -o requirements-gpu.txt \
	    $(addprefix --no-emit-package ,$(NOT_ON_GPUS))
	@$(COMPILE) requirements-mlflow.in -c requirements.txt -o requirements-mlflow.txt
	@$(COMPILE) requirements-dask.in -c requirements.txt -c requirements-mlflow.txt -o requirements-dask.txt
	@$(COMPILE) requirements-dev.in -c requirements.txt -c requirements-mlflow.txt -c requirements-dask.txt -o requirements-dev.txt

clean:  ## remove .venv/ and caches; results in runs/ stay
	rm -rf $(VENV) build .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	@find . -path ./runs -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

clean-runs:  ## remove all results in runs/: lists them, and removes them with CONFIRM=yes
	@if [ ! -d runs ]; then echo "there is no folder runs/"; \
	elif [ $(or $(CONFIRM),'') = yes ]; then echo "removing:"; du -sh runs/*/; rm -rf runs; \
	else echo "would remove:"; du -sh runs/*/; echo "error: nothing was removed. To remove these results:" \
	    "make clean-runs CONFIRM=yes" >&2; exit 2; fi

$(VENV)/.made:
	@$(PYTHON) -c '$(CHECK_PYTHON)' 2>/dev/null || { echo "error: Python 3.11 to 3.13 with venv is needed;" $(PYTHON) "is" \
	    "$$($(PYTHON) --version 2>&1). On Debian or Ubuntu: sudo apt-get install python3 python3-venv; or choose another" \
	    "interpreter: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.predict: requirements-predict.txt pyproject.toml | $(VENV)/.made
	@echo "installing what predicting needs into $(VENV)/ (only once, about a minute)"
	@$(PIP_INSTALL) -r requirements-predict.txt
	@$(SELF_INSTALL)
	@touch $@

$(VENV)/.user: requirements.txt pyproject.toml | $(VENV)/.made
	@echo "installing the pinned requirements into $(VENV)/ (only once, about two minutes)"
	@$(PIP_INSTALL) -r requirements.txt
	@$(SELF_INSTALL)
	@touch $@

$(VENV)/.dev: requirements-dev.txt pyproject.toml | $(VENV)/.made
	@echo "installing the pinned development requirements into $(VENV)/ (only once, about two minutes)"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@$(SELF_INSTALL)
	@touch $@ $(VENV)/.user
