.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
PROFILE ?= lab
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help demo test test-all ui bench lab-study lint format lab-pretrain clean

help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (2 to 4 minutes the first time)" >&2
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray,s3,postgres]'
	@touch $@

demo: .venv/.installed ## Sets up everything, runs the lab profile end to end, prints tables and verdict
	@$(BIN)/kinject run --profile lab
	@$(BIN)/kinject tables --profile lab
	@$(BIN)/kinject report --profile lab

ui: .venv/.installed ## Dagster UI and daemon on 127.0.0.1:3000, with the lab ready
	@$(BIN)/kinject ui --profile $(PROFILE)

test: .venv/.installed ## What CI runs
	@$(BIN)/python -m pytest

test-all: .venv/.installed ## Also the slow tests: every real peer, every browser test, crashes
	@$(BIN)/python -m pytest -m ''

lint: .venv/.installed ## ruff (lint, format) and pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: .venv/.installed ## Formats the code
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

bench: .venv/.installed ## Scoring, training, refreshes, retrieval side by side (40 minutes, idle machine)
	@$(BIN)/python -m kinject_assets_tests.bench.refresh
	@$(BIN)/python -m kinject_assets_tests.bench.scoring
	@$(BIN)/python -m kinject_assets_tests.bench.scoring --size 1.1B --questions 4 \
	  --case "anatomy, 5-shot" --case "K = 0..5, 5-shot, chunks of 120"
	@$(BIN)/python -m kinject_assets_tests.bench.index --vectors 10000 --vectors 100000
	@$(BIN)/python -m kinject_assets_tests.bench.embedding
	@$(BIN)/python -m kinject_assets_tests.bench.training

lab-study: .venv/.installed ## Runs the study of docs/lab.md on all its worlds (some 80 minutes)
	@$(BIN)/kinject lab study

lab-pretrain: .venv/.installed ## Makes the lab's models again (about 45 minutes on 2 cores)
	@$(BIN)/kinject lab pretrain

clean: ## Removes everything produced; keeps .venv
	@rm -rf data/out .pytest_cache .ruff_cache .hypothesis build *.egg-info
